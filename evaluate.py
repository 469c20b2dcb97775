"""Measure a cascade on its data set and draw its sheet: python evaluate.py 'stages=[RUN16,RUN64,RUN256]'."""

from omegaconf import DictConfig

from imagen.cli import main
from imagen.slots import of_stages


@main("evaluate", around=of_stages)
def run(cfg: DictConfig) -> None:
    from imagen.evaluation import evaluate  # here, so that --help answers before torch is loaded

    evaluate(cfg)


if __name__ == "__main__":
    run()
