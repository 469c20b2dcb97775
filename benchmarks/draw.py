"""Draw docs/performance.md, and the figure in it, from all that benchmarks/results/ holds.

python benchmarks/draw.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, Parser
from figure import bars

from imagen.files import atomic_write

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
FIGURE = PAGE.parent / "assets" / "performance.svg"

Figures = dict[str, Any]
Column = tuple[str, Callable[[Figures], str]]

INTRODUCTION = """# Performance

What was measured, and on what. This page is drawn from `benchmarks/results/*.json` by `python benchmarks/draw.py`;
`benchmarks/README.md` says what each benchmark does and how to run it again.

- Times are medians, with the least and the most of the rounds.
- **Utilisation** counts convolutions, matrix products and attention alone. It is a share of a GPU's dense bf16 peak,
  and on a CPU of the rate at which that CPU does bare 3×3 convolutions in bf16.
- **Memory** is the peak of CUDA's allocator, on a CPU that of the process, torch and its libraries included.
- **The norm** with scale, shift and SiLU is one function (`group_norm=torch | triton`). On CPUs it keeps
  one tensor for the backward pass where the norm and a SiLU after it kept two: 4 instead of 6 in a residual block.
  The Triton kernels read their input twice and write once each way; they agree with PyTorch's norm under Triton's
  interpreter, and **their speed is unmeasured** until `python benchmarks/norm.py` has run on a GPU. So the default is
  `torch`, which `compile=true` fuses.
"""

TARGETS = {
    "imagen_base64_300m": ("300M base at 64×64", 0.45),
    "imagen_base64": ("2B base at 64×64", 0.50),
    "imagen_sr256": ("64→256 super-resolution", 0.40),
}
"""Utilisation in training that is to be reached on an H100 or H200; the goal beyond is 60 %."""


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plain(key: str, form: Callable[[float], str] = digits) -> Callable[[Figures], str]:
    """A figure; nothing where there is none."""
    return lambda figures: "" if figures.get(key) is None else form(figures[key])


def spread(key: str, low: str, high: str, form: Callable[[float], str] = digits) -> Callable[[Figures], str]:
    """A median, and in brackets the least and the most."""
    return lambda figures: f"{form(figures[key])} ({form(figures[low])} to {form(figures[high])})"


def percent(value: float) -> str:
    """A share."""
    return f"{value:.2%}" if value < 0.05 else f"{value:.0%}"


def gib(figures: Figures) -> str:
    return f"{figures['memory_mib'] / 1024:.1f}"


def form_of_norm(name: str) -> list[Column]:
    """Milliseconds, GB/s and the share of a copy's rate of one form; nothing where it was not measured."""

    def cell(figures: Figures) -> str:
        if f"{name}_ms" not in figures:
            return "unmeasured"
        said = spread(f"{name}_ms", f"{name}_ms_low", f"{name}_ms_high")(figures)
        return f"{said}; {digits(figures[f'{name}_gb_per_s'])}, {percent(figures[f'{name}_share'])}"

    return [(f"{name}: ms; GB/s, share", cell)]


def ratio(name: str) -> Callable[[Figures], str]:
    """This project over a peer, with the least and the most of the rounds where there were several."""

    def cell(figures: Figures) -> str:
        value = figures["ratios"].get(name)
        return spread("median", "low", "high")(value) if isinstance(value, dict) else digits(value)

    return cell


OF_A_STEP: list[Column] = [
    ("batch", plain("batch_size")),
    ("pictures/s", plain("images_per_s")),
    ("ms a step", spread("ms", "ms_low", "ms_high")),
    ("TFLOP/s", plain("tflops_per_s")),
    ("utilisation", plain("utilisation", percent)),
    ("memory, GiB", gib),
]

TABLES: dict[str, tuple[str, list[Column]]] = {
    "train_step": ("A training step", [*OF_A_STEP, ("graph breaks", plain("graph_breaks"))]),
    "sample": (
        "A sampling step, and pictures a second at the preset's number of them",
        [*OF_A_STEP, ("steps", plain("steps"))],
    ),
    "norm": (
        "The norm with scale, shift and SiLU, forward and backward, beside the rate of a copy",
        [
            ("batch", plain("batch_size")),
            ("copy, GB/s", plain("copy_gb_per_s")),
            *form_of_norm("eager"),
            *form_of_norm("compiled"),
            *form_of_norm("triton"),
        ],
    ),
    "ema": (
        "The moving average's share of a training step (to be at most 2 %)",
        [
            ("batch", plain("batch_size")),
            ("parameters", plain("parameters")),
            ("step, ms", plain("step_ms")),
            ("average, ms", plain("ema_ms")),
            ("share", spread("share", "share_low", "share_high", percent)),
        ],
    ),
    "startup": (
        "What one waits for",
        [("seconds", spread("s", "s_low", "s_high")), ("of the processor", plain("cpu_s"))],
    ),
    "compile": (
        "torch.compile",
        [
            ("first step compiled, s", plain("compiled_first_s")),
            ("first step eager, s", plain("eager_first_s")),
            ("later steps compiled, ms", plain("compiled_ms")),
            ("eager, ms", plain("eager_ms")),
        ],
    ),
    "peers": (
        "Beside its peers, by turns: this project over the peer",
        [
            ("batch", plain("batch_size")),
            ("training, pictures/s", ratio("train_images_per_s")),
            ("training, FLOP/s", ratio("train_flops_per_s")),
            ("sampling, pictures/s", ratio("sample_images_per_s")),
            ("sampling, FLOP/s", ratio("sample_flops_per_s")),
            ("memory a picture", ratio("memory_per_picture")),
        ],
    ),
    "loader": (
        "The exact loader, and a bare loop over the same bytes, by turns",
        [
            ("workers", plain("workers")),
            ("samples/s", spread("samples_per_s", "samples_per_s_low", "samples_per_s_high")),
            ("bare loop's", spread("bare_per_s", "bare_per_s_low", "bare_per_s_high")),
            ("ratio", spread("ratio", "ratio_low", "ratio_high")),
        ],
    ),
    "embed_text": (
        "`embed_text.py`, and its encoder's bare forward passes, by turns",
        [
            ("captions/s", plain("embed_text_captions_per_s")),
            ("bare", plain("bare_captions_per_s")),
            ("ratio", spread("ratio", "ratio_low", "ratio_high")),
            ("ratio of the processor's seconds", plain("cpu_ratio")),
        ],
    ),
    "sr1024_forward": (
        "One forward pass at 1024 px",
        [
            ("seconds", spread("seconds", "seconds_low", "seconds_high")),
            ("of the processor", plain("cpu_seconds")),
            ("memory, GiB", gib),
        ],
    ),
}
"""The page's tables, in its order: a benchmark's heading, and its columns between the case and how it was measured."""


def page(files: list[Figures]) -> str:
    """The Markdown of all devices' results."""
    parts = [INTRODUCTION, _targets(files), f"![Where a step's time goes](assets/{FIGURE.name})\n"]
    for file in files:
        parts.append(f"## {file['device']}\n")
        for benchmark, (title, columns) in TABLES.items():
            if cases := file["benchmarks"].get(benchmark):
                parts.append(f"### {title}\n\n{_table(cases, columns)}")
    return "\n".join(parts)


def _table(cases: dict[str, Figures], columns: list[Column]) -> str:
    names = ["", *(name for name, _ in columns), "measured"]
    lines = [names, ["---"] * len(names)]
    for case, figures in cases.items():
        how = (
            f"{figures['date']}, torch {figures['torch']}, {figures['threads']} thread{'s' * (figures['threads'] > 1)}"
        )
        if "not_run" not in figures:
            lines.append([f"`{case}`", *(cell(figures) for _, cell in columns), how])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines) if len(lines) > 2 else ""
    missed = [
        f"- `{case}` was not run: {figures['not_run']}\n" for case, figures in cases.items() if "not_run" in figures
    ]
    return table + ("\n" if table and missed else "") + "".join(missed)


def _targets(files: list[Figures]) -> str:
    """What GPUs are to reach, and what they did."""
    measured: dict[str, list[str]] = {}
    for file in files:
        for case, figures in file["benchmarks"].get("train_step", {}).items():
            if file["kind"] == "cuda" and "utilisation" in figures:
                measured.setdefault(case.split()[0], []).append(
                    f"{figures['utilisation']:.1%} ({case}, {file['device']})"
                )
    rows = [
        f"| {name} | {least:.0%} | {'; '.join(measured.get(preset, [])) or 'unmeasured'} |\n"
        for preset, (name, least) in TARGETS.items()
    ]
    none = "" if any(file["kind"] == "cuda" for file in files) else " No GPU has been measured yet."
    goal = f"Utilisation of the dense bf16 peak in training; 60 % is the goal.{none}"
    heading = f"## To be reached on an H100 or H200\n\n{goal}\n\n"
    return heading + "| | at least | measured |\n|---|---|---|\n" + "".join(rows)


def shares(files: list[Figures]) -> dict[str, dict[str, float]]:
    """Milliseconds by kind of every step that was measured, by a label."""
    words = {"train_step": "training", "sample": "sampling"}
    return {
        f"{case}, {word} ({file['device']})": figures["ms_by_kind"]
        for file in files
        for benchmark, word in words.items()
        for case, figures in file["benchmarks"].get(benchmark, {}).items()
        if "ms_by_kind" in figures
    }


def read(folder: Path) -> list[Figures]:
    """The results of every device, by its name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def main() -> None:
    Parser(__doc__).parse_args()
    files = read(RESULTS)
    for path, content in ((PAGE, page(files)), (FIGURE, bars(shares(files)))):
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
