"""Prompts to pictures on disk: what ``sample.py`` calls."""

import itertools
import time
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from omegaconf import DictConfig
from torch import Tensor

from imagen import build
from imagen.cascade import Samples
from imagen.cli import CONF, as_overrides
from imagen.config_check import read_yaml
from imagen.devices import peak_memory
from imagen.errors import UserError
from imagen.files import make_folder, write_json
from imagen.image_grid import image_grid, save_png, to_pil
from imagen.prompts import read_prompts
from imagen.runs import plain
from imagen.slots import SLOTS
from imagen.task import Task


def sample(cfg: DictConfig) -> Path:
    """Do ``cfg.task``; write ``grid.png``, a PNG a picture and ``samples.json`` in a folder named by the time."""
    _check_used(cfg)
    make_folder(cfg.output_dir, "output_dir")  # before anything is drawn
    task: Task = build.instantiate(cfg.task)
    prompts = read_prompts(task.prompts if cfg.prompts == "auto" else cfg.prompts)
    cascade = build.load_cascade(
        cfg.stages,
        slots={name: cfg[name] for name in SLOTS},
        text_encoder=cfg.text_encoder,
        device=cfg.device,
        precision=cfg.precision,
        offload=cfg.offload,
        compile=cfg.compile,
    )
    samples = cascade.sample(
        prompts,
        task=task,
        negative_prompts=None if cfg.negative_prompts is None else _read_negative_prompts(cfg),
        size=cfg.size,
        num_samples=cfg.num_samples,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
    )
    folder = new_folder(Path(cfg.output_dir))
    settings = {"task": plain(cfg.task), "seed": cfg.seed, "stages": [str(source) for source in cfg.stages]}
    save(samples, folder, settings)
    print(f"{samples.final.shape[0] * samples.final.shape[1]} pictures and grid.png in {folder}")
    print(f"at most {peak_memory(cascade.device) / 2**30:.2f} GiB of memory of {cascade.device}")
    return folder


def _read_negative_prompts(cfg: DictConfig) -> list[str]:
    try:
        return read_prompts(cfg.negative_prompts)
    except UserError as error:
        raise UserError(str(error).replace("prompts=", "negative_prompts=")) from error


def _check_used(cfg: DictConfig) -> None:
    """Raises: UserError if a key is given that only other tasks read."""
    tasks = {path.stem: read_yaml(path) for path in sorted((CONF / "task").glob("*.yaml"))}
    for key in map(str, cfg):
        readers = [name for name, node in tasks.items() if key in node]
        if readers and key not in cfg.task and cfg.get(key) is not None:
            raise UserError(
                f"{key}={cfg[key]} does not go with {as_overrides('task', cfg.task)[0]}, which takes no {key}: "
                f"leave it out, or choose task={' or '.join(readers)}"
            )


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
    """Write the pictures of the last stage, the grid of all stages and, last, ``samples.json``.

    The latter holds the settings ``how``, the size, and each picture's prompts and number (in travel: its frame).
    """
    rows = [list(pictures.flatten(0, 1)) for pictures in samples.by_stage]
    count, _, height, width = samples.final.shape[1:]
    captions = [prompt for prompt in samples.prompts for _ in range(count)]
    save_png(image_grid(rows, captions, [size_label(row[0]) for row in rows]), folder / "grid.png")
    negatives = samples.negative_prompts or [None] * len(samples.prompts)
    listing = []
    for p, (prompt, negative) in enumerate(zip(samples.prompts, negatives, strict=True)):
        for s in range(count):
            name = f"{p:03d}_{s}.png"
            save_png(to_pil(samples.final[p, s]), folder / name)
            listing.append({"file": name, "prompt": prompt, "negative_prompt": negative, "sample": s})
    write_json(folder / "samples.json", {**how, "size": [height, width], "pictures": listing})


def size_label(picture: UInt8[Tensor, "3 h w"]) -> str:
    """Its side, or height x width where it is not square."""
    height, width = picture.shape[1:]
    return str(width) if height == width else f"{height}x{width}"
