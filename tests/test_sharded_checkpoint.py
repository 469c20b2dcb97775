import pickle
from io import BytesIO

import pytest

from imagen.sharded_checkpoint import _numbered, _Unpickler


@pytest.mark.parametrize("evil", [print, pickle.loads, pytest.main])
def test_the_description_of_a_checkpoint_makes_nothing_foreign(evil):
    with pytest.raises(pickle.UnpicklingError, match="has no place in a checkpoint"):
        _Unpickler(BytesIO(pickle.dumps(evil))).load()


@pytest.mark.parametrize("name", ["torch.utils.collect_env.subprocess.Popen", "ExtensionRegistry"])
def test_what_torchs_modules_import_is_foreign_too(name):
    module = "torch.distributed.checkpoint.filesystem"
    words = [pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode() for word in (module, name)]
    with pytest.raises(pickle.UnpicklingError, match="has no place in a checkpoint"):
        _Unpickler(BytesIO(pickle.PROTO + b"\x04" + b"".join(words) + pickle.STACK_GLOBAL + pickle.STOP)).load()


def test_an_optimizers_state_goes_by_number_as_the_optimizer_counts():
    state = {"state": {"b": 1, "a": 0, "c": 2}, "param_groups": [{"params": ["a", "b"]}, {"params": ["c"], "lr": 1}]}
    numbered = _numbered(state)
    assert numbered["state"] == {0: 0, 1: 1, 2: 2}
    assert numbered["param_groups"] == [{"params": [0, 1]}, {"params": [2], "lr": 1}]
