import pytest
from omegaconf import OmegaConf

from imagen.cli import compose
from imagen.errors import UserError
from imagen.instantiate import instantiate, picked_by

TOY = compose("train", ["experiment=toy"])


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "torch.load", "imagenx.Evil", "None"])
def test_only_known_targets_are_built(target):
    with pytest.raises(UserError, match="not allowed"):
        instantiate(OmegaConf.create({"_target_": target}))


def test_a_nested_target_is_not_built():
    node = OmegaConf.create({**TOY.callback.loss_by_logsnr, "edges": [{"_target_": "os.system", "command": "false"}]})
    with pytest.raises(Exception, match="edges"):
        instantiate(node)


def test_keys_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="nonesuch"):
        instantiate(OmegaConf.create({"_target_": "imagen.weighting.Uniform", "nonesuch": 1}))


def test_what_is_picked_is_said_as_one_types_it():
    assert picked_by("sampler", TOY) == "sampler=ddim"
