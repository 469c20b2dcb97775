"""The paper's experiments as commands: an ablation is one file, one multirun, and one table of what came of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from imagen.slots import of_stages

OURS = ("ablation", "scale", "seeds")
"""What is asked of a sweep as a whole."""


@contextmanager
def as_asked(arguments: Sequence[str]) -> Iterator[list[str]]:
    """For a script's ``main``: the arguments as they are, or the multirun that the ablation among them stands for.

    Where they name the sweep of a single point, its variants are there to be picked.
    """
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if given.keys() & {*OURS}:
        from imagen.ablation.sweep import as_multirun  # here, since it loads torch

        with as_multirun(arguments) as swept:
            yield swept
        return
    if given.get("sweep", "null") != "null":
        from imagen.ablation.study import study_named

        study_named(given["sweep"]).store()
    yield list(arguments)


@contextmanager
def as_evaluation(arguments: list[str]) -> Iterator[list[str]]:
    """For ``evaluate.py``: the arguments with what the ablation among them measures, and the stages' own settings."""
    if any(argument.partition("=")[0] in OURS for argument in arguments):
        from imagen.ablation.sweep import evaluation_of

        arguments = evaluation_of(arguments)
    with of_stages(arguments) as given:
        yield given
