"""Train one stage: python train.py experiment=demo_base16 [any.key=value ...].

An ablation of the paper's trains and measures all of its variants: python train.py -m ablation=encoder_size scale=demo
"""

from omegaconf import DictConfig

from imagen.ablation import as_asked
from imagen.cli import main


@main("train", around=as_asked)
def run(cfg: DictConfig) -> float | None:
    if cfg.sweep is None:
        from imagen.training import train  # here, so that --help answers before torch is loaded

        return train(cfg).last("val/loss")  # what a search goes by
    from imagen.ablation.run import run_point

    return run_point(cfg)


if __name__ == "__main__":
    run()
