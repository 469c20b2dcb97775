"""``data_prep/verify.py``: what there is to check, who checks it, and what is told in the end."""

import re
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imagen.build import build_encoder
from imagen.data.shards import SPLITS, read_encoder, stats_path, text_folders
from imagen.data.writer import read_stats, shard_names
from imagen.devices import pick_device
from imagen.errors import UserError
from imagen.files import Location, locate, names_in, write_json
from imagen.prep.gather import gather
from imagen.prep.verify.again import EncodeAgain
from imagen.prep.verify.files import Place
from imagen.prep.verify.findings import Findings
from imagen.prep.verify.shard import CheckShard, Shard
from imagen.prep.work import Workers

IMAGES = re.compile("images-([0-9]+)(-buckets)?")


def verify(cfg: DictConfig) -> None:
    """Check every shard of both splits of ``cfg.root``; exit status 1 and a table where anything is found.

    Raises: UserError where there is nothing to check.
    """
    if not 0 <= cfg.fraction <= 1 or cfg.captions < 0:
        raise UserError(f"fraction={cfg.fraction} must be in [0, 1] and captions={cfg.captions} at least 0")
    workers = Workers(cfg.num_workers, cfg.worker_index, cfg.worker_count)
    root = locate(cfg.root)
    shards = [shard for split in SPLITS for shard in shards_of(root, split)]
    if not shards:
        raise UserError(f"root={root} has no shard in {{train,val}}/images-<size>: check the path, or pack.py makes it")
    findings = Findings()
    _compare_splits(root, bool(cfg.captions), findings)
    compare = _encoders(cfg, root, findings) if cfg.captions else {}
    share = workers.share(shards)
    for checked in workers.map(CheckShard(cfg.fraction, cfg.captions), share, what="verifying"):
        findings.merge(checked.findings)
        for again in checked.again:
            if again.sidecar.parent in compare:
                compare[again.sidecar.parent](again, findings)
    encoded = {str(folder): one.worst for folder, one in compare.items()}
    report = {"shards": len(share), **findings.as_json(), "largest_error": encoded, "asked": _plain(cfg)}
    part = f"-{workers.worker_index}-of-{workers.worker_count}" if workers.worker_count > 1 else ""
    write_json(root / "reports" / f"verify{part}.json", report)
    _tell(root, len(share), findings, max(encoded.values(), default=0.0))
    if findings.found:
        sys.exit(1)


def shards_of(root: Location, split: str) -> list[Shard]:
    """Every shard that any folder of ``split`` has, or by its stats should have, in the order of their names."""
    folder = root / split
    sizes = {name: int(found[1]) for name in names_in(folder) if (found := IMAGES.fullmatch(name))}
    images = {folder / name: names_in(folder / name) for name in sorted(sizes, key=lambda name: (sizes[name], name))}
    texts = {text: names_in(text) for text in text_folders(root, split)}
    promised = {folder: _promised(folder, names) for folder, names in images.items()}
    tars = {name for names in [*images.values(), *texts.values()] for name in names if name.endswith(".tar")}
    tars |= {tar for expected in promised.values() if expected for tar in expected}
    shards = []
    for tar in sorted(tars):
        some = any(tar in names for names in images.values())
        there = [
            (sizes[folder.name], Place(folder / tar, _beside(tar, names), _is_expected(tar, promised[folder], some)))
            for folder, names in images.items()
        ]
        shards.append(Shard(there, [Place(text / tar, _beside(tar, names), some) for text, names in texts.items()]))
    return shards


def _compare_splits(root: Location, embedded: bool, findings: Findings) -> None:
    """There is a split to train on, each split has the folders of the other, and where ``embedded`` one of text."""
    images = {split: {name for name in names_in(root / split) if IMAGES.fullmatch(name)} for split in SPLITS}
    texts = {split: {folder.name for folder in text_folders(root, split)} for split in SPLITS}
    every = set().union(*images.values(), *texts.values())
    for split in SPLITS:
        if images[split] or texts[split]:
            for name in sorted(every - images[split] - texts[split]):
                findings.add("missing folder", f"{split}/{name}")
        elif split == "train":
            findings.add("missing folder", "train/")
    if embedded and not any(texts.values()):
        findings.add("missing folder", "train/text-*", "no caption is embedded; captions=0 asks for none")


def _promised(folder: Location, names: set[str]) -> set[str] | None:
    """The tars that ``folder`` should have, as our writer's stats say; None where none say.

    Where they do not agree, the writing of a larger set or a smaller one was cut off: the most that one says.
    """
    tars = [folder / name for name in sorted(names) if name.endswith(".tar")]
    said = [stats.get("shards") for stats in gather(read_stats, [tar for tar in tars if stats_path(tar).name in names])]
    shards = [number for number in said if isinstance(number, int)]
    return shard_names(max(shards)) if shards else None


def _is_expected(tar: str, promised: set[str] | None, some: bool) -> bool:
    return some if promised is None else tar in promised


def _beside(tar: str, names: set[str]) -> frozenset[str]:
    stem = tar.removesuffix(".tar")
    return frozenset(names & {tar, f"{stem}.parquet", f"{stem}_stats.json", f"{stem}_index.npy"})


def _encoders(cfg: DictConfig, root: Location, findings: Findings) -> dict[Location, EncodeAgain]:
    """For each folder of text embeddings by ``text_encoder`` what encodes again; of all others it is told why not."""
    encoder = build_encoder(cfg)
    declared = encoder.declared()
    compare: dict[Location, EncodeAgain] = {}
    any_by_it = False
    for split in SPLITS:
        for folder in text_folders(root, split):
            tars = sorted(name for name in names_in(folder) if name.endswith(".tar"))
            try:
                made_by = read_encoder(folder / tars[0]) if tars else {}
                if any(made_by.get(key) != value for key, value in declared.items()):
                    findings.unchecked[f"captions of {split}/{folder.name} (not by text_encoder={encoder.name})"] += 1
                    continue
                any_by_it = True
                if encoder.fingerprint() != made_by:
                    findings.add(
                        "wrong encoder", f"{split}/{folder.name}", f"other weights than {encoder.picked_by} has"
                    )
                else:
                    compare[folder] = EncodeAgain(encoder.to(pick_device(cfg.device)))
            except UserError as error:  # no weights on this machine, or a damaged tar, which is a finding of its own
                findings.unchecked[f"captions of {split}/{folder.name} ({error})"] += 1
    if not any_by_it:
        findings.unchecked[f"captions (no embeddings by text_encoder={encoder.name})"] += 1
    return compare


def _plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=True)


def _tell(root: Location, shards: int, findings: Findings, worst: float) -> None:
    checked = ", ".join(f"{count:,} {what}" for what, count in findings.checked.items())
    print(f"{root}: {shards:,} shards; {checked}" + (f" (relative error at most {worst:.2g})" if worst else ""))
    for what, count in findings.unchecked.items():
        print(f"not checked: {what}" + (f", {count:,} times" if count > 1 else ""))
    if findings.found:
        print(f"{findings.found.total():,} findings\n{findings.table()}")
    else:
        print("nothing was found amiss")
