"""Encode captions once: for every image shard a sidecar tar of text embeddings, keyed like the pictures, unpadded.

    python data_prep/embed_text.py root=data/openmoji text_encoder=minilm

Run again, it redoes only the shards whose captions or encoder changed or that are missing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from imagen.build import build_encoder
from imagen.cli import main
from imagen.data import shards, tokens
from imagen.devices import pick_device
from imagen.errors import UserError
from imagen.text_encoder import TextEncoder


@dataclass
class Counts:
    """What one run did."""

    captions: int = 0
    tokens: int = 0
    bytes: int = 0
    skipped: int = 0
    cut: int = 0
    first_cut: str = ""
    unfinished: list[str] = field(default_factory=list)


def caption_folders(cfg: DictConfig) -> dict[str, Path]:
    """For each split that is there, the folder of image shards whose captions are read."""
    found = {}
    for split in shards.SPLITS:
        sizes = {int(folder.name.split("-")[1]): folder for folder in Path(cfg.root, split).glob("images-[0-9]*")}
        if cfg.images is not None:
            sizes = {0: folder} if (folder := Path(cfg.root, split, cfg.images)).is_dir() else {}
        if sizes:
            found[split] = sizes[min(sizes)]
    if not found:
        looked = cfg.images or "images-<size>"
        raise UserError(f"root={cfg.root} has no {{train,val}}/{looked}: draw or download the pictures first")
    return found


def is_whole(sidecar: Path, fingerprint: dict[str, Any], captions: dict[str, str]) -> bool:
    """Whether the sidecar was made by this very encoder from these very captions."""
    if not sidecar.exists():
        return False
    try:
        if shards.read_encoder(sidecar) != fingerprint:
            return False
        made = {
            key: tokens.tokens_caption_hash(data) for key, data in shards.read_members(sidecar, shards.TOKENS_SUFFIX)
        }
    except ValueError:
        return False  # damaged: made again
    return made == {key: shards.caption_hash(caption) for key, caption in captions.items()}


def encode(encoder: TextEncoder, captions: list[str], batch_size: int, bar: tqdm) -> dict[str, Float[Tensor, "n d"]]:
    """Tokens of every distinct caption, float16 on the CPU; batches are of like length, so that little is padding."""
    distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
    encoded = {}
    for i in range(0, len(distinct), batch_size):
        batch = distinct[i : i + batch_size]
        text = encoder.encode(batch)
        half = text.tokens.to(torch.float16)
        for caption, rows, real in zip(batch, half.cpu(), text.mask.cpu(), strict=True):
            encoded[caption] = rows[real]
            if not encoded[caption].isfinite().all():
                raise UserError(
                    f"text_encoder {encoder.name} gives infinite or undefined tokens for {caption!r} in float16"
                )
        bar.update(len(batch))
    return encoded


def members(
    fingerprint: dict[str, Any], captions: dict[str, str], encoded: dict[str, Float[Tensor, "n d"]]
) -> Iterator[tuple[str, bytes]]:
    """The fingerprint, then a member per picture in the order of the image shard."""
    yield shards.ENCODER_MEMBER, json.dumps(fingerprint, indent=2).encode()
    for key, caption in captions.items():
        yield f"{key}{shards.TOKENS_SUFFIX}", shards.dump_tokens(encoded[caption], caption)


def embed_shard(encoder: TextEncoder, tar: Path, sidecar: Path, cfg: DictConfig, bar: tqdm, counts: Counts) -> None:
    """Make one sidecar, or find that it is whole."""
    captions = shards.read_captions(tar)
    fingerprint = encoder.fingerprint()
    if is_whole(sidecar, fingerprint, captions):
        counts.skipped += 1
        bar.total -= len(captions)  # no work, and so no part of the rate
        bar.refresh()
        return
    texts = list(captions.values())
    encoded = encode(encoder, texts, cfg.batch_size, bar)
    bar.update(len(texts) - len(encoded))
    shards.write_tar(sidecar, members(fingerprint, captions, encoded))
    cut = [(text, lost) for text, lost in zip(texts, encoder.cut(texts), strict=True) if lost]
    if cut and not counts.cut:
        counts.first_cut = f"{cut[0][0][:60]!r} lost {cut[0][1][:60]!r}"
    counts.cut += len(cut)
    counts.captions += len(texts)
    counts.tokens += sum(len(encoded[text]) for text in texts)
    counts.bytes += sidecar.stat().st_size


def embed_set(cfg: DictConfig) -> None:
    """Embed every split of ``cfg.root``."""
    if cfg.batch_size < 1 or not 0 <= cfg.part < cfg.parts:
        raise UserError(
            f"batch_size={cfg.batch_size} must be at least 1 and part={cfg.part} in 0..parts-1={cfg.parts - 1}"
        )
    encoder = build_encoder(cfg).to(pick_device(cfg.device))
    counts, work = Counts(), []
    for split, folder in caption_folders(cfg).items():
        whole = shards.whole_shards(folder, skip_unfinished=True)
        counts.unfinished += [str(tar) for tar in set(folder.glob("*.tar")) - set(whole)]
        target = shards.text_folder(cfg.root, split, encoder.name, encoder.fingerprint())
        work += [(tar, target / tar.name) for tar in whole]
    work = work[cfg.part :: cfg.parts]
    total = sum(json.loads(shards.stats_path(tar).read_text())["successes"] for tar, _ in work)
    with tqdm(total=total, desc=encoder.name, unit="caption") as bar:
        for tar, sidecar in work:
            embed_shard(encoder, tar, sidecar, cfg, bar, counts)
    folders = ", ".join(dict.fromkeys(str(sidecar.parent) for _, sidecar in work))
    if counts.skipped == len(work):
        print(f"{folders}: every sidecar is there, nothing to encode")
    else:
        written = f"{counts.captions:,} captions, {counts.tokens:,} tokens, {counts.bytes / 1e6:.1f} MB written"
        print(f"{folders}: {written}; {counts.skipped} of {len(work)} shards were there")
    if counts.cut:
        print(f"{counts.cut:,} captions are longer than max_length={encoder.max_length}: the first, {counts.first_cut}")
    if counts.unfinished:
        print(f"passed over, without _stats.json: {', '.join(sorted(counts.unfinished))}")


if __name__ == "__main__":
    main("data_prep/embed_text")(embed_set)()
