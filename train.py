"""Train one stage: python train.py experiment=demo_base16 [any.key=value ...]."""

from omegaconf import DictConfig

from imagen.cli import main


@main("train")
def run(cfg: DictConfig) -> None:
    from imagen.training import train  # here, so that --help answers before torch is loaded

    train(cfg)


if __name__ == "__main__":
    run()
