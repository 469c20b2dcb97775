"""Draw pictures: python sample.py 'stages=[RUN16,RUN64,RUN256]' 'prompts=["a red apple"]' [any.key=value ...].

Or something of a picture: task=inpaint image=photo.png mask=mask.png. The other tasks are in conf/task/.
"""

from omegaconf import DictConfig

from imagen.cli import main
from imagen.slots import of_stages


@main("sample", around=of_stages)
def run(cfg: DictConfig) -> None:
    from imagen.sampling import sample  # here, so that --help answers before torch is loaded

    sample(cfg)


if __name__ == "__main__":
    run()
