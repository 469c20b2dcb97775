"""Export an average of any length from a run's snapshots: python -m imagen.ema RUN sigma_rel=0.12 [step=2000]."""

import sys

from imagen.cli import one_sentence
from imagen.ema.posthoc import export
from imagen.errors import UserError

USAGE = "give a run folder and a length: python -m imagen.ema RUN sigma_rel=0.12 [step=2000]"


def arguments(words: list[str]) -> tuple[str, float, int | None]:
    """The run, sigma_rel and step that a command line names. Raises: UserError where it says anything else."""
    settings = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if not words or len(settings) != len(words) - 1 or not {"sigma_rel"} <= set(settings) <= {"sigma_rel", "step"}:
        raise UserError(f"{' '.join(words) or 'nothing'} is not understood; {USAGE}")
    try:
        return words[0], float(settings["sigma_rel"]), int(settings["step"]) if "step" in settings else None
    except ValueError as error:
        raise UserError(f"{' '.join(words)} is not understood ({error}); {USAGE}") from error


def main() -> None:
    """Export, and print the path."""
    with one_sentence("train"):
        print(export(*arguments(sys.argv[1:])))


if __name__ == "__main__":
    main()
