"""Compare two models by eye: a page for raters, and the chart of their answers (docs/human_evaluation.md).

python -m imagen.human_eval A B prompts=lab             # A and B: folders of sample.py num_samples=8, or evaluate.py
python -m imagen.human_eval report STUDY RATINGS...     # the study's folder; the raters' files, or folders of them
"""

import sys
from pathlib import Path

from imagen.cli import CONF, compose, one_sentence
from imagen.errors import UserError
from imagen.human_eval import build_study, write_report


def split(words: list[str]) -> tuple[list[Path], list[str]]:
    """The paths and the overrides on a command line; what exists is a path, even with an = in its name."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word).expanduser() for word in words if word not in overrides], overrides


def main() -> None:
    """Do what the command line says, and print where it is."""
    words = sys.argv[1:]
    config_name = "human_eval_report" if words[:1] == ["report"] else "human_eval"
    if {"--help", "-h"} & {*words}:
        print(f"{__doc__}\n{(CONF / f'{config_name}.yaml').read_text(encoding='utf-8')}")
        return
    with one_sentence(config_name):
        if config_name == "human_eval_report":
            paths, overrides = split(words[1:])
            if len(paths) < 2:
                raise UserError("give a study and its ratings: python -m imagen.human_eval report STUDY RATINGS...")
            write_report(compose(config_name, overrides), paths[0], paths[1:])
        else:
            paths, overrides = split(words)
            if len(paths) != 2:
                raise UserError(
                    f"{len(paths)} folders are given, not two: python -m imagen.human_eval A B prompts=lab compares "
                    "the pictures of A with those of B"
                )
            build_study(compose(config_name, overrides), paths[0], paths[1])


if __name__ == "__main__":
    main()
