"""The second phase: what only a look at the whole set tells. Perceptual duplicates, and captions that repeat.

One pass over 32 bytes a sample; every shard then gets its part of the verdicts.
"""

import io
import itertools
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, Shaped, UInt8, UInt64

from imagen.errors import UserError
from imagen.files import Location, names_in, write_array
from imagen.prep.filter.look import Mark, digest, read_columns, table_path

KEPT, DUPLICATE, REPEATED = 0, 1, 2
REASONS = {DUPLICATE: "duplicate", REPEATED: "repeated caption"}
_BITS = 64
_MOST = 3  # of duplicate_distance: beyond it the bands get so short that nearly everything must be compared


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``distance``: bits in which the pHashes of one picture may differ; ``colour``: levels in which the mean colours
    of its quarters may; ``repeats``: how often a caption may come, None for any number of times.
    """

    distance: int
    colour: int
    repeats: int | None

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= _MOST:
            raise UserError(f"duplicate_distance={self.distance} must be between 0 and {_MOST} bits")
        if self.colour < 0 or (self.repeats is not None and self.repeats < 1):
            raise UserError(
                f"duplicate_colour={self.colour} must be at least 0 and max_caption_repeats={self.repeats} at least 1"
            )


@dataclass(frozen=True)
class Candidates:
    """What the rules left of the whole set, in the order of shards and samples."""

    phash: UInt64[np.ndarray, " n"]
    colours: UInt8[np.ndarray, "n 12"]
    caption: UInt64[np.ndarray, " n"]
    pixels: Int[np.ndarray, " n"]


def judge(candidates: Candidates, limits: Limits) -> UInt8[np.ndarray, " n"]:
    """KEPT, DUPLICATE or REPEATED for each.

    Of duplicates the largest is kept, of the largest the first. Captions are counted among what is then left: that a
    picture is all over the web says nothing against its caption. One that comes too often is boilerplate wherever it
    stands, and all its pictures go.
    """
    verdict = np.where(duplicates(candidates, limits), DUPLICATE, KEPT).astype(np.uint8)
    if limits.repeats is not None:
        left = np.flatnonzero(verdict == KEPT)
        captions, counts = np.unique(candidates.caption[left], return_counts=True)
        verdict[left[np.isin(candidates.caption[left], captions[counts > limits.repeats])]] = REPEATED
    return verdict


def duplicates(candidates: Candidates, limits: Limits) -> Bool[np.ndarray, " n"]:
    """Which are copies of another that is kept.

    Equal hashes of grey levels make a group; in it a sample goes if its colours are those of one that stays, since to
    pHash a blue square and a red one are the same.
    """
    groups = near(candidates.phash, limits.distance) if limits.distance else candidates.phash
    copies = np.zeros(len(groups), dtype=bool)
    left = np.lexsort((-candidates.pixels, groups))
    leads = _leads(groups[left])
    left = left[~(leads & np.append(leads[1:], True))]  # most are alone: they cost no more memory from here on
    while len(left):
        leads = _leads(groups[left])
        leader = np.maximum.accumulate(np.where(leads, np.arange(len(left)), 0))
        others = np.flatnonzero(~leads)
        apart = candidates.colours[left[others]].astype(np.int16) - candidates.colours[left[leader[others]]]
        same = (np.abs(apart) <= limits.colour).all(axis=1)
        copies[left[others[same]]] = True
        left = left[others[~same]]  # of another colour: the first of these leads the next round
    return copies


def _leads(groups: Shaped[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which of sorted groups' members are the first of theirs."""
    return np.append(True, groups[1:] != groups[:-1])[: len(groups)]


def near(phash: UInt64[np.ndarray, " n"], distance: int) -> Int[np.ndarray, " n"]:
    """A number for each hash, the same for all within ``distance`` bits of each other, directly or through others.

    Of ``distance`` + 1 bands of bits two such hashes agree in one, so only hashes that share a band are compared.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique, place = np.unique(phash, return_inverse=True)
    edges = [np.zeros((2, 0), dtype=np.int64)]
    for low, high in itertools.pairwise(np.linspace(0, _BITS, distance + 2).astype(int)):
        band = (unique >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band, kind="stable")
        band, hashes = band[order], unique[order]
        first = np.arange(len(band))
        for step in itertools.count(1):
            first = first[first + step < len(band)]
            first = first[band[first] == band[first + step]]
            if not len(first):
                break
            close = first[np.bitwise_count(hashes[first] ^ hashes[first + step]) <= distance]
            edges.append(np.stack([order[close], order[close + step]]))
    rows, columns = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(unique), len(unique)))
    return connected_components(graph, directed=False)[1][place]


def verdicts(reports: Location, marks: dict[str, Mark], limits: Limits) -> dict[str, UInt8[np.ndarray, " n"]]:
    """For each shard the verdict on every sample of it; read where one was given on these very tables, else given."""
    path = reports / f"merged-{digest([asdict(limits), {shard: mark.content for shard, mark in marks.items()}])}.npy"
    try:
        merged = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        merged = _merge(reports, marks, limits)
        write_array(path, merged)
    for name in names_in(reports):
        if name.startswith("merged-") and name != path.name:
            (reports / name).unlink(missing_ok=True)
    ends = np.cumsum([mark.count for mark in marks.values()])
    return dict(zip(marks, np.split(merged, ends[:-1]), strict=True))


def _merge(reports: Location, marks: dict[str, Mark], limits: Limits) -> UInt8[np.ndarray, " n"]:
    """Read the columns of every shard, judge, and lay the verdicts out in the order of all samples."""
    stays: list[Bool[np.ndarray, " n"]] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Candidates.__annotations__}
    for shard in marks:
        alive, part = _candidates(table_path(reports, shard))
        stays.append(alive)
        for name, column in columns.items():
            column.append(getattr(part, name))
    # one column after the other, so that never more than one of them is there twice
    candidates = Candidates(**{name: np.concatenate(columns.pop(name)) for name in list(columns)})
    verdict = np.zeros(sum(mark.count for mark in marks.values()), dtype=np.uint8)
    verdict[np.concatenate(stays)] = judge(candidates, limits)
    return verdict


def _candidates(path: Location) -> tuple[Bool[np.ndarray, " n"], Candidates]:
    names = ["reason", "phash", "colours", "caption", "width", "height"]
    reason, *columns = read_columns(path, names)
    alive = reason.is_null()
    phash, colours, caption, width, height = (column.filter(alive) for column in columns)
    candidates = Candidates(
        np.frombuffer(_bytes(phash), np.uint64),
        np.frombuffer(_bytes(colours), np.uint8).reshape(-1, 12),
        np.frombuffer(_bytes(caption), np.uint64),
        width.to_numpy() * height.to_numpy(),
    )
    return alive.to_numpy(), candidates


def _bytes(column: pa.ChunkedArray) -> bytes:
    return b"".join(column.to_pylist())
