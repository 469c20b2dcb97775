"""Folders of pictures as sample.py writes them, a study of two, and raters who answer it."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagen.cascade import Samples
from imagen.cli import compose
from imagen.human_eval import build_study
from imagen.sampling import save

SIDE = 16


def draw_folder(folder: Path, prompts: list[str], model: int, count: int = 2) -> Path:
    """``count`` pictures of each prompt, none like another, as sample.py itself saves them."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(model)
    pictures = torch.randint(0, 256, (len(prompts), count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    save(Samples(prompts, [pictures], None), folder, {"seed": 0})
    return folder


def make_study(root: Path, prompts: list[str], *overrides: str) -> Path:
    """The folder of a study of two models."""
    a, b = (draw_folder(root / name, prompts, model) for model, name in enumerate("AB"))
    cfg = compose("human_eval", ["num_samples=2", f"output_dir={root / 'study'}", *overrides])
    return build_study(cfg, a, b)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_ratings(study: Path, rater: str, answer, folder: Path, **changes) -> Path:
    """A rater's file; ``answer(trial's truth, question)`` says 'a', 'b' or 'indifferent', or a side."""
    key = read_json(study / "key.json")
    answers = [
        {"trial": identity, "seconds": 3.0}
        | {question: _side(answer(truth, question), truth) for question in ("quality", "alignment")}
        for identity, truth in key["trials"].items()
    ]
    ratings = {"format": "imagen human evaluation 1", "study": key["study"], "rater": rater, "saved": "2026-01-01"}
    path = folder / f"{rater}.json"
    path.write_text(json.dumps(ratings | {"answers": answers} | changes), encoding="utf-8")
    return path


def _side(said: str, truth: dict) -> str:
    if truth["right_answer"] and said in ("a", "b"):
        return truth["right_answer"]
    other = {"left": "right", "right": "left"}
    return {"a": truth["a_is"], "b": other.get(truth["a_is"])}.get(said, said)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
