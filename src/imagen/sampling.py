"""Prompts to pictures on disk: what ``sample.py`` calls."""

import itertools
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imagen import build
from imagen.cascade import Samples
from imagen.files import write_json
from imagen.image_grid import image_grid, save_png, to_pil
from imagen.prompts import read_prompts
from imagen.slots import SLOTS


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.prompts``; write ``grid.png``, a PNG a picture and ``samples.json`` in a folder named by the time."""
    prompts = read_prompts(cfg.prompts)
    cascade = build.load_cascade(
        cfg.stages,
        slots={name: cfg[name] for name in SLOTS},
        text_encoder=cfg.text_encoder,
        device=cfg.device,
    )
    samples = cascade.sample(prompts, num_samples=cfg.num_samples, seed=cfg.seed, batch_size=cfg.batch_size)
    folder = new_folder(Path(cfg.output_dir))
    save(samples, folder, {"seed": cfg.seed, "stages": [str(source) for source in cfg.stages]})
    print(f"{len(prompts) * cfg.num_samples} pictures and grid.png in {folder}")
    return folder


def new_folder(parent: Path) -> Path:
    """A folder of one's own in ``parent``, named by the time and, where that is taken, numbered."""
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    for name in itertools.chain([now], (f"{now}_{number}" for number in itertools.count(2))):
        try:
            (parent / name).mkdir(parents=True)
        except FileExistsError:
            continue
        return parent / name
    raise AssertionError


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
