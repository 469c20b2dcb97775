"""W&B's names: a sweep is a group, a stage a job type, what was asked for tags."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from imagen.build import run_config
from imagen.cli import compose
from imagen.runs import RunFolder
from imagen.wandb_run import named


def names(*overrides):
    cfg = compose("train", [*overrides, "logger=[wandb]"])
    return named(cfg.logger.wandb, cfg, RunFolder.of(run_config(cfg)))


def test_a_run_by_itself_is_of_its_experiment():
    node = names("experiment=toy", "seed=3")
    assert (node.group, node.job_type, list(node.tags)) == ("toy", "base", [])
    assert node.id.startswith("toy-")
    assert node.id.endswith("-s3")


def test_a_sweeps_run_is_of_the_sweep_and_tagged_by_what_was_asked(monkeypatch):
    asked = ["experiment=toy_sr32", "variant=narrow", "x=" + "y" * 99]
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": {"overrides": {"task": asked}}}))
    node = names("experiment=toy_sr32", "sweep=unet_size-demo")
    assert (node.group, node.job_type) == ("unet_size-demo", "sr32")
    assert list(node.tags) == [*asked[:2], asked[2][:64]]


def test_what_the_user_names_stays():
    node = names("experiment=toy", "logger.wandb.group=mine", "logger.wandb.job_type=probe", "logger.wandb.tags=[a]")
    assert (node.group, node.job_type, list(node.tags)) == ("mine", "probe", ["a"])
