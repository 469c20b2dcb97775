import pytest

from imagen.devices import pick_device
from imagen.errors import UserError


@pytest.mark.parametrize("device", ["gpuu", "cuda:99"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(device):
    with pytest.raises(UserError, match=f"device={device} is not to be had here: give one of auto, cpu"):
        pick_device(device)


def test_a_device_that_is_there_is_picked():
    assert pick_device("cpu").type == "cpu"
    assert pick_device(None) == pick_device("auto")
