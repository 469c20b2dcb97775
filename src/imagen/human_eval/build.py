"""Two folders of pictures into a study: a page for raters, and the key that stays with whoever asks them."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from imagen.errors import UserError
from imagen.files import atomic_write, make_folder, write_json
from imagen.human_eval import pictures
from imagen.human_eval.page import page
from imagen.human_eval.trials import Comparison, Control, choose_controls, kinds, make_trials, study_identity
from imagen.prompt_files import Prompt
from imagen.prompts import read_prompts_and_kinds

log = logging.getLogger(__name__)


def build_study(cfg: DictConfig, folder_a: Path, folder_b: Path) -> Path:
    """Write ``page/`` and, last, ``key.json`` into the folder ``cfg.output_dir``; return it.

    Raises: UserError where a folder is not one of ``sample.py``'s, no prompt has enough pictures in both, or
    ``cfg.output_dir`` holds another study.
    """
    if cfg.num_controls < 0:
        raise UserError(f"num_controls={cfg.num_controls} must be at least 0")
    if cfg.name_a == cfg.name_b:
        raise UserError(f"name_a={cfg.name_a} and name_b={cfg.name_b} are the same: tell the models apart")
    listed = {"A": pictures.listed(folder_a, "A"), "B": pictures.listed(folder_b, "B")}
    common = [Prompt(text) for text in listed["A"] if text in listed["B"]]
    wanted = common if cfg.prompts == "auto" else read_prompts_and_kinds(cfg.prompts)
    wanted = list({prompt.text: prompt for prompt in wanted}.values())
    output = Path(cfg.output_dir)
    folder = output / "page" / "pictures"
    make_folder(folder, "output_dir")

    comparisons = _comparisons(wanted, listed, cfg.num_samples, folder)
    controls = []
    for prompt, other, is_a in choose_controls([one.prompt for one in comparisons], cfg.num_controls, cfg.seed):
        names = {one.prompt: one.a if is_a else one.b for one in comparisons}
        spoilt = [
            pictures.write(pictures.spoil(pictures.read(folder / name), f"{cfg.seed} {name}"), folder)
            for name in names[other]
        ]
        controls.append(Control(prompt, names[prompt], spoilt))
    trials, truths = make_trials(comparisons, controls, cfg.seed)
    study = study_identity(trials, truths)
    _refuse_another(output, study)
    with atomic_write(output / "page" / "index.html") as temporary:
        temporary.write_text(page(study, trials, kinds([one.prompt for one in comparisons])), encoding="utf-8")
    models = {"a": {"name": cfg.name_a, "folder": str(folder_a)}, "b": {"name": cfg.name_b, "folder": str(folder_b)}}
    asked = {"seed": cfg.seed, "num_samples": cfg.num_samples, "num_controls": cfg.num_controls}
    trial_truths = {identity: asdict(truth) for identity, truth in truths.items()}
    write_json(output / "key.json", {"study": study, **models, **asked, "trials": trial_truths})
    print(f"{len(comparisons)} comparisons and {len(controls)} control trials: open {output / 'page' / 'index.html'}")
    print(f"give raters the folder {output / 'page'}; keep {output / 'key.json'}, which says whose pictures are where")
    return output


def _comparisons(
    wanted: Sequence[Prompt], listed: dict[str, dict[str, list[Path]]], count: int, folder: Path
) -> list[Comparison]:
    """The pictures of each prompt, written; prompts that lack some are left out with a warning."""
    found, lacking = [], []
    for prompt in tqdm(wanted, desc="pictures", unit="prompt", disable=None):
        try:
            names = [
                _write(prompt, model, files.get(prompt.text, []), count, folder) for model, files in listed.items()
            ]
            found.append(Comparison(prompt, *names))
        except ValueError as error:
            lacking.append(str(error))
    if not found:
        raise UserError(
            f"there is nothing to compare ({lacking[0] if lacking else 'A and B have no prompt in common'}): draw the "
            f"same prompts for both with sample.py num_samples={count}"
        )
    if lacking:
        log.warning("%d of %d prompts are left out; %s", len(lacking), len(wanted), lacking[0])
    return found


def _write(prompt: Prompt, model: str, files: Sequence[Path], count: int, folder: Path) -> list[str]:
    if len(files) < count:
        raise ValueError(f"{model} has {len(files)} of {count} pictures of {prompt.text!r}")
    return [pictures.write(pictures.read(path), folder) for path in files[:count]]


def _refuse_another(output: Path, study: str) -> None:
    """Raises: UserError where ``output`` holds a study that is not this one: its ratings could no longer be read."""
    try:
        there = json.loads((output / "key.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if there.get("study") != study:
        raise UserError(f"output_dir={output} holds another study, {there.get('study')}: give another folder")
