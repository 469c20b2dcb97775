import pytest

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError


def test_a_network_of_the_other_kind_is_refused_as_one_types_it():
    with pytest.raises(UserError, match=r"^network.low_res=true does not go with low_resolution=null: "):
        build.build_module(compose("train", ["experiment=toy", "network=unet_sr_toy"]))


@pytest.mark.parametrize("low", [12, 16, 32])
def test_a_low_resolution_that_does_not_fit_is_refused(low):
    with pytest.raises(UserError, match=f"low_resolution={low}"):
        build.build_module(compose("train", ["experiment=toy", f"low_resolution={low}"]))


def test_a_crop_that_does_not_fit_network_and_enlargement_is_refused():
    assert build.build_module(compose("train", ["experiment=toy_sr32", "data.crop=16"]))
    with pytest.raises(UserError, match=r"data.crop=15 must be a multiple of 2 .*stride \(2\).*enlargement \(2\)"):
        build.build_module(compose("train", ["experiment=toy_sr32", "data.crop=15"]))


@pytest.mark.parametrize(
    "override", ["conditioning_augmentation=gaussian", "augmentation_level=0.1", "data.crop=8", "data.crop=16"]
)
def test_what_only_a_super_resolution_stage_has_is_refused_of_a_base_stage(monkeypatch, override):
    monkeypatch.setattr(build, "build_network", lambda cfg: pytest.fail("a network was built"))
    with pytest.raises(UserError, match=f"^{override} does not go with low_resolution=null: a base stage"):
        build.build_module(compose("train", ["experiment=toy", override]))


def test_an_optimizer_says_at_once_what_it_does_not_take():
    with pytest.raises(UserError, match=r"optimizer refuses its settings.*optimizer\.lr=-1"):
        build.build_module(compose("train", ["experiment=toy", "optimizer.lr=-1"]))


def test_accumulation_is_not_set_by_hand():
    with pytest.raises(UserError, match="follows from other keys: set micro_batch_size"):
        build.build_module(compose("train", ["experiment=toy", "+trainer.accumulate_grad_batches=2"]))
