"""``data_prep/stats.py``: which folders there are, their counts, and the page."""

import importlib.util
import itertools
import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from imagen.data.access import OpenTar
from imagen.data.index import PICTURE_FIELDS
from imagen.data.pixels import open_picture
from imagen.data.shards import SPLITS, stats_path, text_folders, whole_shards
from imagen.errors import UserError
from imagen.files import Location, atomic_write, locate, names_in, write_json
from imagen.prep.stats.counts import Counts, CountShard
from imagen.prep.stats.page import Section, Shown, page, size_in_words
from imagen.prep.work import Workers


def stats(cfg: DictConfig) -> None:
    """Write ``stats.html`` and ``stats.json`` of a flat folder ``cfg.input`` or of a set ``cfg.root``.

    Raises: UserError unless just one of the two is given and holds shards.
    """
    if (cfg.input is None) == (cfg.root is None):
        raise UserError(f"input={cfg.input} root={cfg.root}: give one, a flat folder of shards or the root of a set")
    if cfg.pictures < 0:
        raise UserError(f"pictures={cfg.pictures} must be at least 0")
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("stats reads parquet files, which needs pyarrow: pip install 'imagen-lab[data]'")
    base = locate(cfg.input or cfg.root)
    if cfg.input:
        whole_shards(base, skip_unfinished=True)  # says what is wrong where there are none
    workers = Workers(cfg.num_workers, 0, 1)
    folders: dict[str, Counts] = {}
    sections = []
    for folder, rows in ({base: True} if cfg.input else folders_of(base)).items():
        name = folder.name if cfg.input else f"{folder.parent.name}/{folder.name}"
        counted = dict(workers.map(CountShard(rows), tars_of(folder), what=name))
        counts = sum((counted[tar] for tar in sorted(counted, key=str)), Counts())
        if unfinished := _unfinished(folder):
            counts.notes["without _stats.json: unfinished, not counted"] += unfinished
        folders[name] = counts
        if rows:
            sections.append(
                Section(name, counts, sheet({tar: one.pictures for tar, one in counted.items()}, cfg.pictures))
            )
    output = locate(cfg.output) if cfg.output else base / "reports"
    asked = OmegaConf.to_container(cfg, resolve=True)
    with atomic_write(output / "stats.html") as temporary:
        temporary.write_text(page(str(base), folders, sections), encoding="utf-8")
    write_json(output / "stats.json", {"folders": {n: c.as_json() for n, c in folders.items()}, "asked": asked})
    for name, counts in folders.items():
        print(f"{name}: {counts.pictures:,} samples in {counts.shards:,} shards, {size_in_words(counts.bytes)}")
        for note, count in counts.notes.items():
            print(f"  {count:,} {note}")
    print(f"the page: {output / 'stats.html'}")


def folders_of(root: Location) -> dict[Location, bool]:
    """Every folder of shards of a set, and whether its rows are counted: those of each split's largest pictures.

    Raises: UserError where there are no pictures.
    """
    folders: dict[Location, bool] = {}
    for split in SPLITS:
        names = [name for name in names_in(root / split) if re.fullmatch("images-[0-9]+(-buckets)?", name)]
        images = [root / split / name for name in sorted(names, key=lambda name: (int(name.split("-")[1]), name))]
        folders |= {folder: folder == images[-1] for folder in images}
        folders |= dict.fromkeys(text_folders(root, split), False)
    if not any(folders.values()):
        raise UserError(f"root={root} has no {{train,val}}/images-<size>: check the path, or give input=<flat folder>")
    return folders


def tars_of(folder: Location) -> Sequence[Location]:
    """The whole shards of a folder, perhaps none, in the order of their names."""
    names = names_in(folder)
    tars = [folder / name for name in sorted(names) if name.endswith(".tar")]
    return [tar for tar in tars if stats_path(tar).name in names]


def _unfinished(folder: Location) -> int:
    return sum(name.endswith(".tar") for name in names_in(folder)) - len(tars_of(folder))


def sheet(pictures: dict[Location, int], count: int) -> list[Shown]:
    """``count`` pictures, or all there are, evenly over all shards in the order of their names."""
    tars = sorted(pictures, key=str)
    ends = list(itertools.accumulate(pictures[tar] for tar in tars))
    total = ends[-1] if ends else 0
    shown: list[Shown] = []
    places = [(2 * i + 1) * total // (2 * min(count, total)) for i in range(min(count, total))]
    for tar, end in zip(tars, ends, strict=True):
        chosen = [place - end + pictures[tar] for place in places if end - pictures[tar] <= place < end]
        shown += _read(tar, chosen) if chosen else []
    return shown


def _read(tar: Location, rows: list[int]) -> list[Shown]:
    """The samples of these rows of a tar; a damaged one has perhaps fewer than its stats say."""
    opened = OpenTar(tar, PICTURE_FIELDS)
    rows = [row for row in rows if row < len(opened.index)]
    shown = []
    for key, members in zip(opened.index["key"][rows], opened.read(rows), strict=True):
        name, caption = (said.decode(errors="replace") for said in (key, members.content.get("caption", b"")))
        try:
            shown.append(Shown(open_picture(members.content.get("picture", b"")), caption, name))
        except ValueError as error:
            shown.append(Shown(None, caption, f"{name}: {members.fault or error}"))
    return shown
