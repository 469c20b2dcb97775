"""What lies beside a tar: its stats, its index and its parquet must say what the tar holds."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen.data.index import index_path, read_index, scan
from imagen.data.shards import stats_path
from imagen.errors import UserError
from imagen.files import Location
from imagen.prep.parquet import read_parquet
from imagen.prep.verify.findings import Findings
from imagen.prep.verify.samples import as_object
from imagen.prep.verify.whole_tar import WholeTar


@dataclass(frozen=True)
class Place:
    """Where a folder has a tar of this shard, or should have: whether it is ``expected`` there; ``names`` lie there."""

    tar: Location
    names: frozenset[str]
    expected: bool

    def has(self, path: Location) -> bool:
        return path.name in self.names

    @property
    def there(self) -> bool:
        return self.has(self.tar)

    @property
    def whole(self) -> bool:
        return self.there and self.has(stats_path(self.tar))

    def __str__(self) -> str:
        return "/".join(self.tar.parts[-3:])


def read_stats(place: Place, findings: Findings) -> dict[str, Any]:
    """The stats beside the tar; empty where there are none, or none that can be read."""
    if not place.has(stats_path(place.tar)):
        return {}
    try:
        stats = as_object(stats_path(place.tar).read_bytes())
    except OSError:
        stats = None
    if stats is None or not isinstance(stats.get("successes", 0), int):
        findings.add("damaged stats", f"{place}", stats_path(place.tar).name)
        return {}
    return stats


def check_tar(tar: WholeTar, place: Place, stats: dict[str, Any], samples: int, findings: Findings) -> bool:
    """Whether the tar, which was read through, is whole: the samples of a damaged one are not held against others."""
    findings.checked["tars"] += 1
    if tar.damage is not None:
        findings.add("damaged tar", str(place), tar.damage)
        findings.unchecked["pairs of damaged tars"] += 1
    if "sha256" not in stats:
        findings.unchecked["tars without a recorded sha256"] += 1
    elif stats["sha256"] != tar.sha256:
        findings.add("wrong sha256", str(place))
    if tar.damage is None and stats.get("successes", samples) != samples:
        findings.add("wrong count", str(place), f"{samples} samples, {stats['successes']} by its stats")
    return tar.damage is None


def check_index(place: Place, fields: dict[str, str], stats: dict[str, Any], findings: Findings) -> None:
    """The index must be what the tar's headers say now. What img2dataset wrote has none; what we wrote has."""
    if not place.has(index_path(place.tar)):
        _lacks(index_path(place.tar), place, stats, "index", findings)
        return
    try:
        index, fresh = read_index(place.tar, fields), scan(place.tar, fields)
    except UserError as error:
        findings.add("stale index", str(place), str(error))
        return
    names = fresh.dtype.names or ()
    if len(index) != len(fresh) or not all(np.array_equal(index[name], fresh[name]) for name in names):
        findings.add("stale index", str(place), f"{len(index)} rows; the tar has {len(fresh)} samples")


def check_parquet(place: Place, stats: dict[str, Any], keys: set[str], findings: Findings) -> None:
    """The parquet has a row for every sample of the tar, and as many rows as the stats count."""
    path = place.tar.with_suffix(".parquet")
    if not place.has(path):
        _lacks(path, place, stats, "parquet", findings)
        return
    try:
        import pyarrow
    except ImportError:
        findings.unchecked["parquets (pip install 'imagen-lab[data]')"] += 1
        return
    try:
        with path.open("rb") as file:
            listed = read_parquet(file, ["key"])["key"].to_pylist()
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        findings.add("damaged parquet", str(place), str(error).partition("\n")[0])
        return
    if len(listed) != stats.get("count", len(listed)):
        findings.add("damaged parquet", str(place), f"{len(listed)} rows, {stats['count']} by the stats")
    elif lost := keys.difference(listed):
        findings.add("damaged parquet", str(place), f"without {len(lost)} of the tar's keys, as {min(lost)}")


def _lacks(path: Location, place: Place, stats: dict[str, Any], what: str, findings: Findings) -> None:
    if "recipe" in stats:  # the mark of our own writer
        findings.add("missing file", str(place), path.name)
    else:
        findings.unchecked[f"tars without {what}"] += 1
