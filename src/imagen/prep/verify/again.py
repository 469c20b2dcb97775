"""Captions encoded again and held against the tokens that are stored."""

import torch

from imagen.data.tokens import code, load_tokens, relative_error
from imagen.files import Location
from imagen.prep.verify.findings import Findings
from imagen.prep.verify.shard import Again, Span
from imagen.text_encoder import TextEncoder

COMPUTE = {"fp32": 2e-3, "bf16": 6e-2}
"""How far two batches of other shapes, or two machines, may be apart: relative error by the encoder's dtype."""

STORAGE = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "int8"}
"""In which code tokens were stored, by what they are read back as."""


class EncodeAgain:
    """Compare what ``encoder`` says now with what is stored; ``worst`` is the largest error that was let pass."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.worst = 0.0

    def __call__(self, again: Again, findings: Findings) -> None:
        """Encode the captions of one sidecar as one batch; each that differs is a finding."""
        keys = list(again.spans)
        captions = [c.decode(errors="replace") for c in _read(again.images, [again.spans[key][0] for key in keys])]
        members = _read(again.sidecar, [again.spans[key][1] for key in keys])
        text = self.encoder.encode(captions)
        for key, row, real, member in zip(keys, text.tokens.cpu(), text.mask.cpu(), members, strict=True):
            where = f"{'/'.join(again.sidecar.parts[-3:])} {key}"
            stored, _ = load_tokens(member)
            findings.checked["captions encoded again"] += 1
            fresh = row[real].float()
            if stored.shape != fresh.shape:
                findings.add("other tokens", where, f"{len(stored)} stored, {len(fresh)} now")
                continue
            error = float(relative_error(fresh, {"tokens": stored}).mean())
            lost = float(relative_error(fresh, code(fresh, STORAGE[stored.dtype])).mean())
            allowed = COMPUTE[self.encoder.dtype_name] + 2 * lost
            if not error <= allowed:
                findings.add("other tokens", where, f"relative error {error:.2g}, at most {allowed:.2g} is rounding")
            else:
                self.worst = max(self.worst, error)


def _read(tar: Location, spans: list[Span]) -> list[bytes]:
    read = []
    with tar.open("rb") as file:
        for offset, size in spans:
            file.seek(offset)
            read.append(file.read(size))
    return read  # type: ignore[return-value]
