import pickle
from io import BytesIO

import pytest
import torch

from imagen.checkpoints import check_whole, checkpoint_name
from imagen.errors import UserError
from imagen.resume import past_of
from imagen.runs import RunFolder, read_weights
from imagen.sharded_checkpoint import _numbered, _Unpickler, read_folder, write_folder


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


@pytest.fixture
def alone(tmp_path):
    """A group of this process and no other."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("part", ["__0_0.distcp", ".metadata"])
def test_a_folder_whose_part_is_cut_is_passed_over(tmp_path, caplog, part):
    config = {"max_steps": 9, "resume": "auto"}
    run = RunFolder(tmp_path / "run")
    for step in (2, 4):
        checkpoint = {"imagen": {"config": config, "seconds": 1.0}, "global_step": step}
        folder = run.checkpoints / checkpoint_name(step)
        write_folder({**checkpoint, "state_dict": {"w": torch.arange(100.0)}, "optimizer_states": []}, folder)
        check_whole(folder)
        assert torch.equal(read_folder(folder)["state_dict"]["w"], torch.arange(100.0))
    assert past_of(config, run).step == 4
    (folder / part).write_bytes((folder / part).read_bytes()[:-10])
    with pytest.raises(UserError, match=f"its part {part} is not what was written"):
        read_weights(folder)
    assert past_of(config, run).step == 2
    assert f"its part {part} is not what was written" in caplog.text
    assert {path.name for path in run.checkpoints.iterdir()} == {checkpoint_name(2), f"{checkpoint_name(4)}.damaged"}
