"""Prompts to pictures on disk: what ``sample.py`` calls."""

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imagen import build
from imagen.cascade import Cascade, Samples
from imagen.files import write_json
from imagen.image_grid import image_grid, save_png, to_pil
from imagen.prompts import read_prompts
from imagen.slots import SLOTS


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.prompts``; write ``grid.png``, a PNG a picture and ``samples.json`` in a folder named by the time."""
    prompts = read_prompts(cfg.prompts)
    cascade = build.load_cascade(
        list(cfg.stages),
        slots={name: cfg[name] for name in SLOTS},
        text_encoder=cfg.text_encoder,
        device=cfg.device,
    )
    warn_of_cuts(cascade, prompts)
    samples = cascade.sample(prompts, num_samples=cfg.num_samples, seed=cfg.seed, batch_size=cfg.batch_size)
    folder = Path(cfg.output_dir) / time.strftime("%Y-%m-%d_%H-%M-%S")
    save(samples, folder, {"seed": cfg.seed, "stages": [str(source) for source in cfg.stages]})
    print(f"{len(prompts) * cfg.num_samples} pictures and grid.png in {folder}")
    return folder


def warn_of_cuts(cascade: Cascade, prompts: list[str]) -> None:
    """Say of each prompt that is longer than the encoder takes what was cut."""
    for prompt, cut in zip(prompts, cascade.encoder.cut(prompts), strict=True):
        if cut:
            limit = cascade.encoder.max_length
            print(f"prompt {prompt[:40]!r}... is longer than the encoder's {limit} tokens; cut: {cut!r}")


def save(samples: Samples, folder: Path, how: dict[str, Any]) -> None:
    """Write the pictures of the last stage, the grid of all stages and, last, ``samples.json``."""
    rows = [list(pictures.flatten(0, 1)) for pictures in samples.by_stage]
    count = samples.final.shape[1]
    captions = [prompt for prompt in samples.prompts for _ in range(count)]
    save_png(image_grid(rows, captions, [str(row[0].shape[-1]) for row in rows]), folder / "grid.png")
    listing = []
    for p, prompt in enumerate(samples.prompts):
        for s in range(count):
            name = f"{p:03d}_{s}.png"
            save_png(to_pil(samples.final[p, s]), folder / name)
            listing.append({"file": name, "prompt": prompt, "sample": s})
    write_json(folder / "samples.json", {**how, "pictures": listing})
