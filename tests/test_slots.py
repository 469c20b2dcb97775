import pytest
from hydra.core.config_store import ConfigStore

from imagen.cli import compose
from imagen.errors import UserError
from imagen.runs import Weights
from imagen.slots import register, slot_names
from tests.test_runs import CONFIG


def test_a_slot_starts_as_its_run_says_and_takes_overrides(tmp_path):
    for name, weight in (("a", 3.0), ("b", 8.0)):
        config = {
            **CONFIG,
            "guidance": {"_target_": "imagen.guidance.ClassifierFreeGuidance", "weight": weight},
            "sampler": {},
            "threshold": {},
            "text_encoder": {"_target_": "imagen.text_encoder.Hash", "width": 1},
        }
        Weights({}, config, {}, 0).save(tmp_path / f"{name}.safetensors")
    stages = f"stages=[{tmp_path}/a.safetensors,{tmp_path}/b.safetensors]"
    register(["seed=1", stages])
    cfg = compose(
        "sample", [stages, "base.guidance.weight=1.35", "sr1.augmentation_level=0.1", "sampler@base.sampler=ddim"]
    )
    assert cfg.base.guidance.weight == 1.35
    assert cfg.sr1.guidance.weight == 8.0
    assert cfg.sr1.augmentation_level == 0.1
    assert cfg.base.sampler["_target_"] == "imagen.sampler.DDIM"
    assert cfg.sr2.guidance == {}
    assert cfg.text_encoder.width == 1


def test_without_stages_the_slots_are_empty():
    register([])
    assert ConfigStore.instance().load("sampler/trained_base.yaml").node == {}
    register(["stages=[a,"])  # what does not parse is Hydra's to report


def test_a_setting_for_a_slot_that_no_stage_fills_is_refused(tmp_path):
    Weights({}, CONFIG, {}, 0).save(tmp_path / "a.safetensors")
    stages = f"stages=[{tmp_path}/a.safetensors]"
    for argument in ("sr1.augmentation_level=0.2", "sampler@sr2.sampler=ddim"):
        with pytest.raises(UserError, match=f"{argument} is of no effect: the stages fill base alone"):
            register([stages, argument])


def test_super_resolution_alone_leaves_the_base_slot_empty():
    base, sr = {"low_resolution": None}, {"low_resolution": 16}
    assert slot_names([]) == ()
    assert slot_names([base, sr, sr]) == ("base", "sr1", "sr2")
    assert slot_names([sr]) == ("sr1",)
    assert slot_names([sr, sr]) == ("sr1", "sr2")
    for many in ([base, sr, sr, sr], [sr, sr, sr]):
        with pytest.raises(UserError, match=f"{len(many)} entries"):
            slot_names(many)
