"""What an ablation's finished points show: a page with table, figure, pictures and verdict (docs/ablations.md).

python -m imagen.report ablation=encoder_size scale=demo seeds=3    # and what else the sweep was started with
    finished=CSV                  rows of points whose runs are elsewhere: table.csv of another report
    wandb=offline | online | null the table and the figure as a run of the sweep's group
"""

import sys

from imagen.cli import one_sentence
from imagen.report.command import write_report


def main() -> None:
    """Do what the command line says, and print where it is."""
    if {"--help", "-h"} & {*sys.argv[1:]}:
        print(__doc__)
        return
    with one_sentence("train"):
        write_report(sys.argv[1:])


if __name__ == "__main__":
    main()
