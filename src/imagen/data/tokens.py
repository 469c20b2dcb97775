"""One member of a sidecar: the real tokens of one caption as safetensors, in one of three codes.

``fp16`` and ``bf16`` round each number. ``int8`` keeps one byte a number and one scale a token, its largest absolute
value over 127: about 1 % of a token's length is lost, and what the network reads takes half the room. A member says
itself how it is coded, so that a reader needs no setting, and members of different codes may lie in one folder.
"""

import base64
import functools
import hashlib
import json

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from imagen.errors import UserError

STORAGES = ("fp16", "bf16", "int8")
_LEVELS = 127  # of each sign: -128 is not used, so that the code is symmetric
_HASH = "hash"  # a short name: every member has it


def caption_hash(caption: str) -> str:
    """32 hex digits (16 bytes of SHA-256) that tie an embedding to the caption it was made from."""
    return hashlib.sha256(caption.encode()).hexdigest()[:32]


def check_storage(storage: str) -> None:
    """Raises: UserError unless ``storage`` is one of the codes."""
    if storage not in STORAGES:
        raise UserError(f"storage={storage} is not a code of text embeddings: give one of {', '.join(STORAGES)}")


def code(tokens: Float[Tensor, "*b n d"], storage: str) -> dict[str, Tensor]:
    """The tensors that a member holds for these tokens, on the same device: ``tokens`` and, for int8, ``scale``.

    ``scale`` [*b n] is float16, rounded up so that no number is clipped.
    """
    check_storage(storage)
    if storage != "int8":
        return {"tokens": tokens.to(torch.float16 if storage == "fp16" else torch.bfloat16)}
    largest = tokens.float().abs().amax(-1)
    scale = (largest / _LEVELS * (1 + 2**-11) + 2**-25).to(torch.float16)  # half a unit up, then to the nearest
    steps = tokens / scale.float().clamp_min(2**-24)[..., None]  # a token of zeros has scale 0
    return {"tokens": steps.round().clamp(-_LEVELS, _LEVELS).to(torch.int8), "scale": scale}


def decode(parts: dict[str, Tensor]) -> Float[Tensor, "*b n d"]:
    """Undo ``code``: tokens in the float type they are stored in, those of int8 as float32.

    Raises: ValueError where the tensors are not such as ``code`` gives.
    """
    tokens, scale = parts.get("tokens"), parts.get("scale")
    if tokens is not None and tokens.is_floating_point():
        return tokens
    if tokens is None or tokens.dtype != torch.int8:
        raise ValueError("not a text embedding: its tokens are neither floats nor int8")
    if scale is None or not scale.is_floating_point() or scale.shape != tokens.shape[:-1]:
        raise ValueError("not a text embedding: int8 without one scale per token")
    return tokens.float() * scale.float()[..., None]


def relative_error(tokens: Float[Tensor, "*b n d"], parts: dict[str, Tensor]) -> Float[Tensor, "*b n"]:
    """What coding lost of each token: ‖x - x̂‖ / ‖x‖, 0 for a token of zeros, not finite where x or x̂ is not."""
    exact = tokens.float()
    return (exact - decode(parts).float()).norm(dim=-1) / exact.norm(dim=-1).clamp_min(torch.finfo().tiny)


def pack(parts: dict[str, Tensor], caption_hash: str) -> bytes:
    """A member of coded tokens [n d] on the CPU; ``caption_hash`` (hex) goes into its header as base64, without =."""
    short = base64.b64encode(bytes.fromhex(caption_hash)).rstrip(b"=")
    before, after, order = _frame(tuple((name, part.dtype, part.shape) for name, part in parts.items()), len(short))
    return b"".join([before, short, after, *(_bytes(parts[name]) for name in order)])


def _bytes(part: Tensor) -> memoryview:
    return part.contiguous().view(torch.uint8).numpy().data


@functools.lru_cache(4096)  # of each length of captions one, and to ask safetensors anew costs five times as much
def _frame(kinds: tuple[tuple[str, torch.dtype, torch.Size], ...], short: int) -> tuple[bytes, bytes, list[str]]:
    """The header that safetensors gives to tensors of these kinds, before and after the hash, and their order."""
    blank = "?" * short
    member = safetensors.torch.save(
        {name: torch.zeros(shape, dtype=dtype) for name, dtype, shape in kinds}, {_HASH: blank}
    )
    header = member[: 8 + int.from_bytes(member[:8], "little")]
    offsets = {name: said["data_offsets"] for name, said in json.loads(header[8:]).items() if name != "__metadata__"}
    before, after = header.split(blank.encode())
    return before, after, sorted(offsets, key=lambda name: offsets[name])


def dump_tokens(tokens: Float[Tensor, "n d"], caption: str, storage: str = "fp16") -> bytes:
    """A sidecar member: real tokens only, in the code ``storage``, with the hash of their caption in the header."""
    return pack(code(tokens, storage), caption_hash(caption))


def load_tokens(member: bytes) -> tuple[Float[Tensor, "n d"], str]:
    """The tokens and the caption hash of a sidecar member; ValueError if it is not one."""
    try:
        parts = safetensors.torch.load(member)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not a text embedding: {error}") from error
    if "tokens" in parts and parts["tokens"].ndim != 2:
        raise ValueError(f"text embedding of shape {tuple(parts['tokens'].shape)}")
    return decode(parts), tokens_caption_hash(member)


def tokens_caption_hash(member: bytes) -> str:
    """The caption hash (hex) in a sidecar member's header; ValueError if there is none."""
    try:
        length = int.from_bytes(member[:8], "little")
        short = json.loads(member[8 : 8 + length])["__metadata__"][_HASH]
        return base64.b64decode(short + "==", validate=True).hex()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("not a text embedding: no caption hash in its header") from error


def member_bytes(tokens: int, width: int, storage: str) -> int:
    """How long a member of so many tokens is, but for a few digits in its header."""
    return _header_bytes(storage) + tokens * (width + 2 if storage == "int8" else 2 * width)


@functools.cache
def _header_bytes(storage: str) -> int:
    return len(pack(code(torch.zeros(0, 1), storage), caption_hash("")))


def tar_bytes(member: int) -> int:
    """What a member of so many bytes takes in a tar: a header, and padding to whole blocks."""
    return 512 + -(-member // 512) * 512
