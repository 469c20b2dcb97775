"""Measure a cascade on its data set and draw its sheet: python evaluate.py 'stages=[RUN16,RUN64,RUN256]'.

An ablation of sampling alone, of stages of your own: python evaluate.py ablation=threshold scale=demo 'stages=[RUN16]'
"""

from omegaconf import DictConfig

from imagen.ablation import as_evaluation
from imagen.cli import main


@main("evaluate", around=as_evaluation)
def run(cfg: DictConfig) -> None:
    from imagen.evaluation import evaluate  # here, so that --help answers before torch is loaded

    evaluate(cfg)


if __name__ == "__main__":
    run()
