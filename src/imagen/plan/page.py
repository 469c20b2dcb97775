"""Estimates as text: tables for a terminal, or the Markdown of docs/scaling.md."""

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from imagen.plan.estimate import GPUS, Estimate, Run, Way, estimate

Rows = Sequence[Sequence[str]]
Draw = Callable[[Rows], str]


def in_columns(rows: Rows) -> str:
    """Rows, the first the header, in columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def as_markdown(rows: Rows) -> str:
    """Rows, the first the header, as a table of Markdown."""
    header, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, f"|{'---|' * len(rows[0])}", *others])


def stage(
    run: Run, ways: Sequence[Way], utilisations: dict[str, tuple[float, str]], assumed: DictConfig, draw: Draw
) -> str:
    """All of one stage; ``utilisations`` says of each GPU how much of its peak is reached, and how that is known."""
    counts, kept, of_gpu = run.counts, run.counts.kept_bytes, {}
    for gpu, (share, _) in utilisations.items():
        of_gpu[gpu] = [[estimate(run, way, n, GPUS[gpu], share, assumed) for n in assumed.gpus] for way in ways]
    rates = "; ".join(f"{gpu.upper()} at {share:.1%} of its peak, {how}" for gpu, (share, how) in utilisations.items())
    return "\n\n".join(
        [
            f"{counts.parameters:,} parameters. A training picture: {counts.step_flops / 1e12:.2f} TFLOP forward and "
            f"backward; {_gib(kept['none'])} GiB kept, {_gib(kept['selective'])} with recompute=selective, "
            f"{_gib(kept['full'])} with recompute=full. "
            f"{run.steps:,} steps of {run.batch_size:,} pictures. {rates}.",
            "Memory of a GPU, by how many there are, in GiB: state + activations (micro-batch × accumulation).",
            draw(_memory(of_gpu, assumed)),
            "Speed, with the recomputation that is fastest. A step in milliseconds, of the network what cannot be "
            "hidden; what each GPU sends in a step; what all read.",
            draw(_speed(run, of_gpu)),
        ]
    )


OfGPU = dict[str, list[list[Estimate]]]
"""Of each GPU a row a way, and in it an estimate for each number of GPUs."""


def _memory(of_gpu: OfGPU, assumed: DictConfig) -> Rows:
    rows = [["GPU", "way", *(f"{gpus:,}" for gpus in assumed.gpus)]]
    for gpu, ways in of_gpu.items():
        rows += [[gpu.upper(), way[0].way.name, *map(_fit, way)] for way in ways]
    return rows


def _fit(one: Estimate) -> str:
    if not one.micro_batch:
        return f"{_gib(one.state_bytes)} + {_gib(one.picture_bytes)} (not one)"
    activations = _gib(one.micro_batch * one.picture_bytes)
    return f"{_gib(one.state_bytes)} + {activations} ({one.micro_batch} × {one.accumulation})"


def _speed(run: Run, of_gpu: OfGPU) -> Rows:
    parts = ["compute", "network", "update"]
    rows = [["GPU", "GPUs", "way", "images/s", "days", *parts, "sent, GB", "read, MB/s", "limit"]]
    for gpu, ways in of_gpu.items():
        for across in zip(*ways, strict=True):  # all ways on one number of GPUs
            for sharded in (False, True):
                ways_alike = [one for one in across if one.way.sharded is sharded]
                best = min(ways_alike, key=lambda one: (not one.micro_batch, one.step))
                rows.append([gpu.upper(), f"{best.gpus:,}", best.way.name, *_times(run, best)])
    return rows


def _times(run: Run, one: Estimate) -> list[str]:
    if not one.micro_batch:
        return [*["-"] * 7, one.limit]
    rate = run.batch_size / one.step
    parts = [f"{1000 * part:,.1f}" for part in (one.compute, one.network, one.update)]
    days = f"{run.steps * one.step / 86400:,.1f}"
    read = f"{rate * run.sample_bytes / 1e6:,.0f}"
    return [f"{rate:,.0f}", days, *parts, f"{one.network_bytes / 1e9:.1f}", read, one.limit]


def storage(runs: Sequence[Run], assumed: DictConfig, draw: Draw) -> str:
    """What the set takes: each size's pictures, and the text once."""
    rows = [["", "bytes a picture", f"TB of {assumed.pictures:,}"]]
    kept = {f"pictures and captions of {run.name}": run.picture_bytes for run in runs}
    kept |= {f"text, {assumed.storage}": max(run.text_bytes for run in runs)}
    kept |= {"all": sum(kept.values())}
    return draw(rows + [[name, f"{size:,}", f"{size * assumed.pictures / 1e12:.1f}"] for name, size in kept.items()])


def assumptions(assumed: DictConfig, draw: Draw) -> str:
    """Every key of conf/plan.yaml with its value, and what is known of the GPUs."""
    rows = [["assumed", "value"]]
    rows += [[str(key), "null" if value is None else str(value)] for key, value in assumed.items() if key != "targets"]
    for name, gpu in GPUS.items():
        if assumed.gpu in (name, "all"):
            peaks = f"{gpu.peak / 1e12:.1f} TFLOP/s dense bf16, {gpu.bandwidth / 1e12:.2f} TB/s"
            rows.append([gpu.name, f"{gpu.memory / 2**30:.1f} GiB, {peaks}"])
    return draw(rows)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}" if size < 10 * 2**30 else f"{size / 2**30:.1f}"
