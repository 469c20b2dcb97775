"""Run folders of a sweep as training and evaluate.py leave them, with figures made up, in a fraction of a second."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagen.ablation.study import Point, Study, read_study
from imagen.build import run_config
from imagen.evaluation.gallery import Gallery
from imagen.files import write_json
from imagen.runs import Weights

PROMPTS = ["a red apple", "a house", "<b>two</b> & 'three' dogs", "a flag"]
SIDE = 8


def asked(root: Path, *more: str) -> list[str]:
    """What the report of a sweep in ``root`` is asked for."""
    return ["ablation=encoder_size", "scale=demo", f"output_dir={root}", *more]


def make_sweep(root: Path, variants: dict[str, float], seeds: int, *overrides: str) -> Study:
    """Finished points of encoder_size; a variant's number moves its figures, seeds scatter them the same."""
    study = read_study("encoder_size", "demo")
    for variant, gain in variants.items():
        for seed in range(seeds):
            finish(study, study.point(variant, seed, [f"output_dir={root}", *overrides]), gain)
    return study


def finish(study: Study, point: Point, gain: float) -> None:
    """Write what a trained and measured point leaves."""
    config = run_config(point.cfg)
    point.run.start(config)
    Weights({"w": torch.zeros(3, 5), "b": torch.zeros(5)}, config, {}, 600).save(point.run.weights)
    losses = [{"step": step, "images": step, "name": "val/loss", "value": 1 / step - gain} for step in (1, 600)]
    point.run.metrics.write_text("".join(json.dumps(row) + "\n" for row in losses))
    seconds = {"seconds": 90.5 + point.seed, "seconds_per_step": 0.1508}
    point.run.finish({"step": 600, **seconds, "machine": "a CPU, 2 threads x 1"})
    crossed = product(*study.axes.values())
    rows = [row_of(point, dict(zip(study.axes, values, strict=True)), gain) for values in crossed]
    for row in rows:
        draw(point.evaluation / row["name"] / "shown", gain + point.seed)
    write_json(point.evaluation / "report.json", {"points": rows})


def row_of(point: Point, settings: dict[str, Any], gain: float) -> dict[str, Any]:
    """A row of ``report.json``: guidance aligns better, and beyond 2 draws worse."""
    generator = np.random.default_rng(point.seed)
    noise = generator.standard_normal(3) * 0.01
    weight = float(next(iter(settings.values()), 1))
    metrics = {
        "retrieval_top10": 0.3 + 0.1 * np.log(weight) + gain + noise[0],
        "heldout_top10": 0.2 + 0.02 * weight + gain + noise[1] + 0.004 * gain * point.seed,
        "heldout_cosine": 0.2 + 0.02 * weight + gain + noise[1] + 0.004 * gain * point.seed,
        "fd_pixel": 4 + (np.log(weight) - 0.7) ** 2 - 4 * gain + 10 * noise[2],
        "heldout_loss": 0.2 - gain / 5 + noise[0] + 0.002 * gain * point.seed,
        "heldout_loss_logsnr_-2_to_0": 0.3 - gain / 5,
    }
    return {
        "point": settings,
        "name": "_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items()) or "all",
        "drawn": 448,
        "real": 1923,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "n": dict.fromkeys(metrics, 448) | {"heldout_cosine": 192, "heldout_top10": 192},
        "metric_of": {name: "_".join(name.split("_")[:2]) if "loss" in name else name for name in metrics},
        "provenance": {
            **{name: {"sentence_encoder": "MiniLM"} for name in ("retrieval_top10", "heldout_top10", "heldout_cosine")},
            "fd_pixel": {"resize": "none"},
            "heldout_loss": {"seed": 0, "draws": 4},
        },
        "directions": {"fd_pixel": "lower", "heldout_loss": "lower"}
        | dict.fromkeys(("retrieval_top10", "heldout_cosine", "heldout_top10"), "higher"),
        "skipped": {},
        "seed": point.seed,
        "sampling": {"base": {"guidance": "ClassifierFree", "weight": weight, "sampler": "DPMSolver", "steps": 32}},
    }


def draw(folder: Path, hue: float) -> None:
    """A gallery, drawn without a network."""
    gallery = Gallery(folder, PROMPTS, [SIDE], {"configs": []}, 1, 4, 0)
    gallery.begin()
    generator = np.random.default_rng(int(1000 * hue))
    (folder / str(SIDE)).mkdir(exist_ok=True)
    for one in gallery.plan["pictures"]:
        pixels = generator.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / one["file"])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
