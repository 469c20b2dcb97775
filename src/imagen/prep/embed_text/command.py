"""``data_prep/embed_text.py``: for every image shard a sidecar tar of text embeddings, keyed like the pictures."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from imagen.build import build_encoder
from imagen.data import shards, tokens
from imagen.data.writer import read_stats
from imagen.devices import own_device
from imagen.errors import UserError
from imagen.files import Location, locate, names_in, write_json
from imagen.prep.embed_text.encoding import UNREADABLE, Encoding
from imagen.prep.embed_text.sidecar import Sidecar, caption_count
from imagen.prep.gather import gather
from imagen.prep.work import Workers
from imagen.text_encoder import TextEncoder

SAMPLE = 1000
"""How many captions the number of tokens is estimated from."""

MUCH = 0.02
"""Losing more than this share of a token's length, on average, is told."""


@dataclass(frozen=True)
class Share:
    """The sidecars of one process, the ``number``-th of those at work on this machine."""

    number: int
    sidecars: list[Sidecar]


@dataclass(frozen=True)
class Embed:
    """Makes a share of the sidecars; ``device`` null or cuda takes the process's own GPU."""

    encoding: Encoding
    device: str | None

    def __call__(self, share: Share) -> list[Sidecar]:
        encoder = self.encoding.encoder.to(own_device(self.device, share.number))
        total = sum(sidecar.captions for sidecar in share.sidecars if not sidecar.looks_whole)
        with tqdm(total=total, desc=encoder.name, unit="caption", position=share.number, disable=not total) as bar:
            return list(self.encoding(share.sidecars, bar))


def embed_set(cfg: DictConfig) -> None:
    """Embed every split of ``cfg.root``, as far as it is this worker's share."""
    embed_with(build_encoder(cfg), cfg)


def embed_with(encoder: TextEncoder, cfg: DictConfig) -> None:
    """The same by an encoder that is there already."""
    for name, least in (("batch_size", 1), ("max_batch_tokens", 1), ("window", 1), ("cache_mb", 0)):
        if cfg[name] < least:
            raise UserError(f"{name}={cfg[name]} must be at least {least}")
    tokens.check_storage(cfg.storage)
    workers = Workers(cfg.num_workers, cfg.worker_index, cfg.worker_count)
    encoding = Encoding(
        encoder, cfg.storage, cfg.batch_size, cfg.max_batch_tokens, cfg.window, int(cfg.cache_mb * 2**20)
    )
    every, unfinished = find_work(cfg, encoder)
    share = workers.share(every)
    tell_plan(encoding, share)
    done = embed(Embed(encoding, cfg.device), workers, share)
    report = write_report(cfg, every, done, unfinished)
    tell_result(report, done, encoder)


def embed(task: Embed, workers: Workers, share: list[Sidecar]) -> list[Sidecar]:
    """Do the share, in this process or in several, each with an encoder of its own."""
    processes = max(1, workers.num_workers)
    first = int(os.environ.get("LOCAL_RANK", workers.worker_index)) * processes
    parts = [Share(first + i, share[i::processes]) for i in range(processes)]
    if not workers.num_workers:
        return task(parts[0])
    results = workers.map(task, [part for part in parts if part.sidecars], what="shares", unit="share")
    return list(itertools.chain.from_iterable(results))


def caption_folders(cfg: DictConfig) -> dict[str, Location]:
    """For each split that is there, the folder of image shards whose captions are read."""
    found = {}
    for split in shards.SPLITS:
        folder = locate(cfg.root) / split
        names = names_in(folder)
        named = {name: name.removeprefix("images-").removesuffix("-buckets") for name in sorted(names)}
        sizes = {int(size): name for name, size in named.items() if size.isdecimal()}
        if cfg.images is not None:
            sizes = {0: cfg.images} if cfg.images in names else {}
        if sizes:
            found[split] = folder / sizes[min(sizes)]
    if not found:
        looked = cfg.images or "images-<size>"
        raise UserError(f"root={cfg.root} has no {{train,val}}/{looked}: draw, pack or download the pictures first")
    return found


def find_work(cfg: DictConfig, encoder: TextEncoder) -> tuple[list[Sidecar], list[str]]:
    """A sidecar for every whole image shard, and the image tars that are none."""
    fingerprint = encoder.fingerprint()
    sidecars, unfinished = [], []
    for split, folder in caption_folders(cfg).items():
        whole = shards.whole_shards(folder, skip_unfinished=True)
        names = {tar.name for tar in whole}
        unfinished += [str(folder / name) for name in names_in(folder) if name.endswith(".tar") and name not in names]
        target = shards.text_folder(cfg.root, split, encoder.name, fingerprint, cfg.storage)
        there = names_in(target)
        tars = [target / images.name for images in whole]
        made = gather(lambda tar, there=there: read_stats(tar) if shards.stats_path(tar).name in there else {}, tars)
        counts = gather(caption_count, whole)
        for images, tar, count, said in zip(whole, tars, counts, made, strict=True):
            sidecars.append(Sidecar(images, tar, fingerprint, cfg.storage, count, said))
    return sidecars, sorted(unfinished)


def tell_plan(encoding: Encoding, share: Sequence[Sidecar]) -> None:
    """Say what there is to do: captions, and from a sample of them tokens and bytes."""
    encoder, todo = encoding.encoder, [sidecar for sidecar in share if not sidecar.looks_whole]
    captions = sum(sidecar.captions for sidecar in todo)
    if not captions:
        return
    sample = sample_captions([sidecar.images for sidecar in todo])
    if not sample:
        return
    lengths = [len(row) for row in encoder.tokenize(sample)]
    each = sum(
        tokens.tar_bytes(tokens.member_bytes(length, encoder.width, encoding.storage)) for length in lengths
    ) / len(sample)
    mean = sum(lengths) / len(sample)
    print(
        f"{todo[0].tar.parent.name}: {captions:,} captions in {len(todo):,} of {len(share):,} shards, about "
        f"{captions * mean:,.0f} tokens and {size_of(captions * each)} as {encoding.storage}; of a sample of "
        f"{len(sample):,} captions {len(set(sample)):,} are distinct, {mean:.1f} tokens each"
    )


def sample_captions(tars: Sequence[Location]) -> list[str]:
    """Up to SAMPLE captions from up to four tars among ``tars``; what is damaged gives none."""
    picked = tars[:: -(-len(tars) // 4)]
    found = []
    for tar in picked:
        members = shards.read_members(tar, ".txt")
        try:
            found += [
                content.decode(errors="replace") for _, content in itertools.islice(members, SAMPLE // len(picked))
            ]
        except UserError:
            continue
    return found


def write_report(
    cfg: DictConfig, every: Sequence[Sidecar], done: Sequence[Sidecar], unfinished: list[str]
) -> dict[str, Any]:
    """Sum up what the stats of all sidecars say, whoever made them, as ``<root>/reports/embed_text-<folder>.json``."""
    for sidecar in done:
        sidecar.made = sidecar.stats or sidecar.made
    mine = {sidecar.tar: sidecar.made for sidecar in done}
    stats = [made for made in gather(lambda tar: mine.get(tar) or read_stats(tar), [one.tar for one in every]) if made]
    sums = {name: sum(made[name] for made in stats) for name in ("successes", "tokens", "bytes", "cut")}
    error = {
        "mean": sum(made["error_sum"] for made in stats) / max(1, sums["tokens"]),
        "max": max((made["error_max"] for made in stats), default=0.0),
    }
    folder = every[0].tar.parent.name
    report = {
        "folders": sorted({str(sidecar.tar.parent) for sidecar in every}),
        "shards": {"all": len(every), "made": len(stats)},
        "captions": sums.pop("successes"),
        **sums,
        "relative_error": error,
        "cut_first": next((made["cut_first"] for made in stats if made["cut"]), ""),
        "reasons": {
            "unfinished": unfinished,
            "damaged": {str(sidecar.images): sidecar.why for sidecar in done if sidecar.why not in ("", "whole")},
            UNREADABLE: sum(made["status_dict"].get(UNREADABLE, 0) for made in stats),
        },
        "encoder": every[0].fingerprint,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "versions": {"imagen": version("imagen-lab"), "torch": torch.__version__},
    }
    write_json(locate(cfg.root) / "reports" / f"embed_text-{folder}.json", report)
    return report


def tell_result(report: dict[str, Any], done: Sequence[Sidecar], encoder: TextEncoder) -> None:
    """A few lines: what was written, what it lost, and what was passed over."""
    folders = ", ".join(report["folders"])
    written = [sidecar.stats for sidecar in done if not sidecar.why]
    if not written:
        print(f"{folders}: every sidecar is there, nothing to encode")
    else:
        sums = {name: sum(stats[name] for stats in written) for name in ("successes", "tokens", "bytes", "error_sum")}
        said = f"{sums['successes']:,} captions, {sums['tokens']:,} tokens, {size_of(sums['bytes'])} written"
        there = sum(sidecar.why == "whole" for sidecar in done)
        print(f"{folders}: {said}; {there} of {len(done)} shards were there")
        mean, most = sums["error_sum"] / max(1, sums["tokens"]), max(stats["error_max"] for stats in written)
        storage = report["config"]["storage"]
        print(f"{storage} loses {mean:.2%} of a token's length, at most {most:.2%} (|x - stored| / |x|)")
        if mean > MUCH:
            print(f"that is more than {MUCH:.0%}: storage=bf16 keeps these embeddings better than {storage}")
    if report["cut"]:
        print(
            f"{report['cut']:,} captions are longer than max_length={encoder.max_length}: the first, "
            f"{report['cut_first']}"
        )
    if report["reasons"]["unfinished"]:
        print(f"passed over, without _stats.json: {', '.join(report['reasons']['unfinished'])}")
    if report["reasons"][UNREADABLE]:
        print(f"{UNREADABLE}: {report['reasons'][UNREADABLE]:,} samples, whose shards are damaged or lack it")
    for why in report["reasons"]["damaged"].values():
        print(f"passed over: {why}")


def size_of(count: int | float) -> str:
    """Bytes as people read them: 9.0 MB, 1.2 TB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
