"""A run that several ablations share, as points or as the stage below: one process at a time is at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagen.ablation.study import Point
from imagen.hold import hold


@contextmanager
def run_lock(point: Point) -> Iterator[None]:
    """Hold the point's run against every other ablation of the same ``output_dir``; one that has it is waited for."""
    path = Path(point.cfg.output_dir) / "ablations" / f".{point.cfg.name}-{point.run.path.name}"
    with hold(path) as free:
        if not free:
            print(f"{point.name}: waiting for another ablation that trains or measures {point.run.path}", flush=True)
    with hold(path, wait=True):
        yield
