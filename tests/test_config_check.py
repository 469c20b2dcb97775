import re
from typing import Annotated, Any, Literal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from imagen.cli import CONF, compose
from imagen.config_check import check_values, described, fits, read_yaml
from imagen.errors import UserError
from imagen.ranges import Range


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (int, [3], [True, 2.5, "3", None], "a whole number"),
        (float, [3, 0.5], [True, "fast", None], "a number"),
        (bool, [False], [0, "yes"], "true or false"),
        (str, ["a", "3"], [3, None], "text"),
        (int | None, [3, None], [0.5, "abc"], "a whole number or null"),
        (list[int], [[1, 2], []], [3, [1, "a"], "12"], "a list, each entry a whole number"),
        (tuple[float, float], [[0.9, 1]], [[0.9], 0.9, [0.9, "x"]], "a list of 2, each entry a number"),
        (Annotated[int, Range(1)], [3], ["3"], "a whole number"),
        (dict[str, int], [{"a": 1}], [[1], "a"], "a group of keys"),
        (Literal["warn", False], ["warn", False], ["wran"], "one of warn, False"),
        (Any, [None, 3, "a", [1]], [], ""),
    ],
)
def test_values_are_held_against_annotations(kind, good, bad, words):
    assert all(fits(value, kind) for value in good)
    assert not any(fits(value, kind) for value in bad)
    assert described(kind) == words


TOY = compose("train", ["experiment=toy"])


def with_override(text: str) -> DictConfig:
    """The toy's config with one key set as the command line sets it."""
    override = OverridesParser.create().parse_override(text)
    cfg = OmegaConf.merge(TOY)
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False)
    return cfg


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=abc", "seed=abc must be a whole number"),
        ("max_steps=1e3", "max_steps=1000.0 must be a whole number: write max_steps=1000"),
        ("name=3", "name=3 must be text: put quotes round it, 'name=\"3\"'"),
        ("compile=yes", "compile=yes must be true or false"),
        ("name=true", "name=true must be text"),
        ("max_steps=null", "max_steps=null must be a whole number"),
        ("low_resolution=abc", "low_resolution=abc must be a whole number or null"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number"),
        ("optimizer.betas=[0.1]", "optimizer.betas=[0.1] must be a list of 2"),
        ("trainer.gradient_clip_val=abc", "trainer.gradient_clip_val=abc must be a whole number or a number or null"),
        ("lr_scheduler.num_warmup_steps=x", "lr_scheduler.num_warmup_steps=x must be a whole number"),
        ("callback.checkpoint.keep=two", "callback.checkpoint.keep=two must be a whole number"),
        ("callback.checkpoint=5", "callback.checkpoint=5 picks no option"),
        ("augmentation_schedule.logsnr_min=low", "augmentation_schedule.logsnr_min=low must be a number"),
        ("max_steps=0", "max_steps=0 must be at least 1"),
        ("batch_size=0", "batch_size=0 must be at least 1"),
        ("seed=-1", "seed=-1 must be at least 0"),
        ("caption_dropout=1.5", "caption_dropout=1.5 must be between 0 and 1"),
        ("caption_dropout=nan", "caption_dropout=nan must be between 0 and 1"),
        ("data.num_workers=-1", "data.num_workers=-1 must be at least 0"),
        ("callback.checkpoint.every_n_steps=0", "callback.checkpoint.every_n_steps=0 must be at least 1"),
    ],
)
def test_an_override_that_does_not_fit_names_itself_and_what_would(override, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        check_values(with_override(override), CONF, "train")


@pytest.mark.parametrize(
    "override",
    [
        "trainer.devices=[0,1]",
        "trainer.devices=auto",
        "trainer.precision=32",
        "optimizer.lr=1",
        "trainer.max_time=null",
    ],
)
def test_what_the_constructors_take_passes(override):
    check_values(with_override(override), CONF, "train")


def test_composing_checks():
    with pytest.raises(UserError, match="seed=abc"):
        compose("train", ["experiment=toy", "seed=abc"])


def test_what_is_made_of_a_missing_value_is_not_looked_at():
    cfg = with_override("seed=3")
    cfg.data.root, cfg.data.made_by, cfg.data.num_workers = "???", "pack.py root=${.root}", "${.root}"
    check_values(cfg, CONF, "train")


def test_a_choice_without_an_option_is_told():
    for override in ("ema={}", "ema={decay: 0.9}"):
        with pytest.raises(UserError, match=r"^ema has no option"):
            check_values(with_override(override), CONF, "train")


def test_values_of_the_other_scripts_are_checked_too():
    for name, override in (
        ("data_prep/openmoji", "limit=abc"),
        ("data_prep/embed_text", "text_encoder.width=wide"),
        ("data_prep/pack", "num_workers=1.5"),
        ("data_prep/pack", "num_workers=-1"),
        ("data_prep/pack", "worker_count=0"),
        ("data_prep/pack", "worker_index=first"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(override)} must be "):
            compose(name, [override])


@pytest.mark.parametrize("override", ["input=null", "input=", "root=null", "root="])
def test_what_must_be_given_is_neither_null_nor_empty(override):
    with pytest.raises(UserError, match=f"^{override.partition('=')[0]} is missing; give it as "):
        compose("data_prep/pack", ["input=a", "root=b", override])


def sample_config(**slots: Any) -> DictConfig:
    cfg = OmegaConf.load(CONF / "sample.yaml")
    assert isinstance(cfg, DictConfig)
    del cfg["defaults"]
    levels = {"augmentation_level": None}
    cfg.update({"task": {"_target_": "imagen.task.base.Generate"}, "base": {}, "sr1": levels, "sr2": levels, **slots})
    return cfg


def test_a_slots_number_is_held_against_its_range():
    with pytest.raises(UserError, match=r"^sr1\.augmentation_level=1\.5 must be between 0 and 1"):
        check_values(sample_config(sr1={"augmentation_level": 1.5}), CONF, "sample")


def test_an_option_put_in_a_slots_place_shows_how_to_pick_it():
    cfg = sample_config(base={"sampler": "ddim"})
    with pytest.raises(UserError, match=r"base\.sampler=ddim picks no option: write sampler@base\.sampler=ddim"):
        check_values(cfg, CONF, "sample")


def test_a_file_that_is_no_yaml_is_named_with_the_place(tmp_path):
    (tmp_path / "a.yaml").write_text("figure: 1\ntoy: {variants: [a\n")
    with pytest.raises(UserError, match=r"a\.yaml is not YAML at line 3, column 1: .*expected ',' or ']'"):
        read_yaml(tmp_path / "a.yaml")


def test_a_file_has_the_numbers_of_the_command_line(tmp_path):
    said = ["1e-4", "-2E5", "3.0e-4", "7", "1e", "e5", "'1e-4'", "1e-4x"]
    (tmp_path / "a.yaml").write_text("".join(f"k{i}: {value}\n" for i, value in enumerate(said)))
    assert [*read_yaml(tmp_path / "a.yaml").values()] == [1e-4, -2e5, 3e-4, 7, "1e", "e5", "1e-4", "1e-4x"]
