"""``data_prep/pack.py``: plan, write what is missing, report."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import PIL
from omegaconf import DictConfig, OmegaConf

from imagen.data.shards import SPLITS, whole_shards
from imagen.data.writer import own_stats, remove_surplus, shard_names
from imagen.errors import UserError
from imagen.files import Location, locate, make_folder, names_in, write_json
from imagen.prep.gather import gather_done
from imagen.prep.pack import buckets, plan
from imagen.prep.pack.codecs import Codec
from imagen.prep.pack.shard import FORMAT, PackShard
from imagen.prep.work import Workers

NOT_OF_THE_SET = ("num_workers", "worker_index", "worker_count")


def pack(cfg: DictConfig) -> None:
    """Pack ``cfg.input`` into ``cfg.root``, or this command's share of it."""
    workers = Workers(cfg.num_workers, cfg.worker_index, cfg.worker_count)
    codec = Codec(cfg.format, cfg.quality)
    sizes = _sizes(cfg)
    asked = OmegaConf.to_container(cfg.buckets) if OmegaConf.is_config(cfg.buckets) else cfg.buckets
    shapes = tuple(buckets.read(asked, sizes, cfg.bucket_stride))
    source, root = locate(cfg.input), make_folder(cfg.root, "root")
    tars = whole_shards(source, skip_unfinished=True)
    unfinished = sorted({name for name in names_in(source) if name.endswith(".tar")} - {tar.name for tar in tars})
    _check_root(root, sizes, bool(shapes))

    rules = plan.Rules(sizes[-1], shapes, cfg.seed, threshold=0)
    threshold = plan.threshold_of(tars, rules, cfg.validation, workers)
    rules = plan.Rules(sizes[-1], shapes, cfg.seed, threshold)
    counted = plan.count(tars, rules, workers)
    units = plan.units(tars, counted, rules, cfg.shard_size)
    left_out = sum((one.reasons for one in counted), Counter())
    if not units:
        why = ", ".join(f"{reason} {count}" for reason, count in left_out.items()) or "it is empty"
        raise UserError(
            f"input={cfg.input} has no sample for sizes={list(sizes)} ({why}): give smaller sizes, or others"
        )

    if not any(unit.split == "train" for unit in units):
        raise UserError(f"validation={cfg.validation} leaves no sample to train on: give less")

    task = PackShard(root, sizes, rules, codec, cfg.shard_size)
    if workers.worker_index == 0:
        for split, size in ((split, size) for split in SPLITS for size in sizes):
            names = shard_names(sum(unit.split == split for unit in units))
            remove_surplus(task.folder(split, size), names, "pack")
    share = workers.share(units)
    done = list(workers.map(task, share, what="packing"))
    written = sum(one["written"] for one in done)
    print(f"{cfg.root}: shards written now: {written}, there already: {len(done) - written}")
    for name in unfinished:
        print(f"passed over, without {name.removesuffix('.tar')}_stats.json: {name}")
    elsewhere = gather_done(task.summary, workers.others(units))
    if elsewhere is None:
        return
    config = {key: value for key, value in _plain(cfg).items() if key not in NOT_OF_THE_SET}
    said = _report([*done, *elsewhere], left_out) | {
        "unfinished": unfinished,
        "config": config,
        "versions": _versions(),
    }
    write_json(root / "reports" / "pack.json", said)
    print(_summary(cfg, said))


def _sizes(cfg: DictConfig) -> tuple[int, ...]:
    """The sizes, ascending; UserError for values that make no set."""
    sizes = tuple(sorted(set(cfg.sizes)))
    if not sizes or len(sizes) < len(cfg.sizes) or sizes[0] < 1:
        raise UserError(f"sizes={list(cfg.sizes)} must be one or more different numbers of pixels")
    if cfg.shard_size < 1:
        raise UserError(f"shard_size={cfg.shard_size} must be at least 1")
    if not (0 <= cfg.validation < 1 or (isinstance(cfg.validation, int) and cfg.validation >= 1)):
        raise UserError(f"validation={cfg.validation} must be a share below 1 or a whole number of samples")
    return sizes


def _check_root(root: Location, sizes: Sequence[int], in_buckets: bool) -> None:
    """UserError where the root holds pictures that this would mix with, or overwrite, and did not write."""
    own = {f"images-{size}-buckets" if in_buckets else f"images-{size}" for size in sizes}
    for split in SPLITS:
        for name in sorted(names_in(root / split)):
            if name.startswith("images-") and name not in own:
                raise UserError(
                    f"root={root} holds {split}/{name}, of which these sizes={list(sizes)} would not have the keys: "
                    "choose another root, or remove it"
                )
            own_stats(root / split / name / "00000.tar", "pack")


def _report(done: list[dict[str, Any]], left_out: Counter[str]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    shapes: Counter[str] = Counter()
    reasons = Counter(left_out)
    for one in done:
        split = splits.setdefault(one["split"], {"samples": 0, "shards": 0, "bytes": Counter()})
        split["samples"] += one["samples"]
        split["shards"] += 1
        split["bytes"].update({str(size): number for size, number in one["bytes"].items()})
        reasons.update(one["reasons"])
        if one["shape"]:
            shapes["{} x {}".format(*reversed(one["shape"]))] += one["samples"]
    packed = sum(split["samples"] for split in splits.values())
    counts = {"read": packed + sum(reasons.values()), "packed": packed, "left_out": dict(sorted(reasons.items()))}
    return (
        counts
        | {"splits": dict(sorted(splits.items()))}
        | ({"buckets": dict(sorted(shapes.items()))} if shapes else {})
    )


def _versions() -> dict[str, str]:
    return {"pack": str(FORMAT), "pillow": PIL.__version__, "numpy": numpy.__version__}


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def _summary(cfg: DictConfig, said: dict[str, Any]) -> str:
    return "\n".join(_lines(cfg, said))


def _lines(cfg: DictConfig, said: dict[str, Any]) -> Iterator[str]:
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in said["left_out"].items())
    yield f"{said['packed']:,} of {said['read']:,} samples packed" + (f"; left out: {reasons}" if reasons else "")
    for split, counts in said["splits"].items():
        sizes = ", ".join(f"{number / 1e6:,.1f} MB at {size}" for size, number in counts["bytes"].items())
        yield f"  {split}: {counts['samples']:,} samples in {counts['shards']:,} shards: {sizes}"
    for shape, number in said.get("buckets", {}).items():
        yield f"  {number:,} of {shape}"
    if "val" not in said["splits"]:
        yield "no sample is for validation, which training wants: give a larger share, or a count, validation=100"
    yield f"next: python data_prep/embed_text.py {shlex.quote(f'root={cfg.root}')} text_encoder=<the encoder>"
