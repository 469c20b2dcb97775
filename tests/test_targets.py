import pytest
from omegaconf import OmegaConf

from imagen.errors import UserError
from imagen.guidance import NoGuidance
from imagen.targets import CHOICES, find_target


def test_an_option_is_found():
    assert find_target(OmegaConf.create({"_target_": "imagen.guidance.NoGuidance"})) is NoGuidance
    assert list(CHOICES) == sorted(CHOICES)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system"},
        {"_target_": "imagen.data.module.os.system"},
        {"_target_": "imagen.schedule.diffuse"},
        {"_target_": "imagen.schedule.NoSuchThing"},
        {"_target_": "imagen.guidance.NoGuidance", "_args_": ["x"]},
    ],
)
def test_what_is_no_option_is_refused(node):
    with pytest.raises(UserError, match="_target_="):
        find_target(OmegaConf.create(node))
