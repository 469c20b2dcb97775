import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from imagen.checkpoints import checkpoint_name, read_checkpoint
from imagen.errors import UserError
from imagen.runs import RunFolder, Weights, config_hash, read_config, read_weights

CONFIG = {
    "name": "toy",
    "seed": 3,
    "output_dir": "outputs",
    "resume": "auto",
    "logger": [],
    "trainer": {"devices": 1, "precision": "32-true"},
    "data": {"root": "data/a", "num_workers": 0},
}
WEIGHTS = Weights({"w": torch.arange(4.0)}, CONFIG, {"name": "hash"}, 12)


def changed(**sections):
    return {
        key: {**value, **sections.get(key, {})} if isinstance(value, dict) else sections.get(key, value)
        for key, value in CONFIG.items()
    }


def test_hash_leaves_out_devices_workers_loggers_and_paths():
    same = changed(
        output_dir="/elsewhere",
        resume="never",
        logger={"wandb": {}},
        trainer={"devices": 8},
        data={"num_workers": 4, "root": "/mnt/a"},
    )
    assert config_hash(same) == config_hash(CONFIG)
    assert config_hash(changed(trainer={"precision": "bf16-mixed"})) != config_hash(CONFIG)
    assert config_hash(changed(data={"root": "data/b"})) != config_hash(CONFIG)


def test_folder_is_named_by_experiment_hash_and_seed():
    path = RunFolder.of(CONFIG).path
    assert str(path) == f"outputs/toy/{config_hash(CONFIG)}-s3"


def test_weights_come_back_as_they_went(tmp_path):
    WEIGHTS.save(tmp_path / "w.safetensors")
    back = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(back.state["w"], WEIGHTS.state["w"])
    assert (back.config, back.text_fingerprint, back.step) == (CONFIG, {"name": "hash"}, 12)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"]) == CONFIG


def test_weights_lie_aligned_however_long_the_header_is(tmp_path):
    """Kernels round otherwise on memory that is not aligned, so two copies of one stage would measure differently."""
    for longer in range(8):
        weights = Weights({"w": torch.arange(64.0), "x": torch.ones(3)}, {"output_dir": "o" * longer}, {}, 12)
        weights.save(tmp_path / "w.safetensors")
        assert all(value.data_ptr() % 64 == 0 for value in read_weights(tmp_path / "w.safetensors").state.values())


def test_a_run_folder_gives_its_weights_and_config(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG)
    WEIGHTS.save(folder.weights)
    assert read_weights(folder.path).step == 12
    assert read_config(folder.path) == CONFIG
    assert read_config(folder.weights) == CONFIG


def test_an_emptied_config_is_told(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG)
    folder.config.write_text("")
    with pytest.raises(UserError, match=r"run' is damaged, or of another version: its config.yaml has no name"):
        read_config(tmp_path / "run")


@pytest.mark.parametrize("content", ["a: [1", "a: b: c", "[1]", "\t"])
def test_a_damaged_config_is_told(tmp_path, content):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG)
    folder.config.write_text(content)
    with pytest.raises(UserError, match=r"run' is damaged.*: its config.yaml"):
        read_config(tmp_path / "run")


def test_a_runs_summary_is_what_it_finished_with(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.summary() == {}
    folder.finish({"step": 3, "seconds": 1.5, "seconds_per_step": 0.5})
    assert folder.summary() == {"step": 3, "seconds": 1.5, "seconds_per_step": 0.5}
    for content, said in (('{"step"', "is damaged"), ("[]", "is damaged"), ('{"step": 3}', "is of another version")):
        folder.done.write_text(content)
        with pytest.raises(UserError, match=rf"done\.json {said}: delete it, and the training's command"):
            folder.summary()


def test_an_unfinished_run_gives_the_average_of_its_newest_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    for step in (5, 10):
        state = {"ema.network.w": torch.full((2,), float(step)), "denoiser.network.w": torch.zeros(2)}
        kept = {"config": CONFIG, "text_fingerprint": {}}
        torch.save(
            {"state_dict": state, "imagen": kept, "global_step": step}, folder.checkpoints / checkpoint_name(step)
        )
    assert read_weights(tmp_path).state["w"].tolist() == [10.0, 10.0]


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_damaged_files_are_named_in_one_sentence(tmp_path, content):
    for name, read in (("a.safetensors", read_weights), ("a.ckpt", read_checkpoint)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*is damaged"):
            read(tmp_path / name)


def test_foreign_and_missing_stages_are_refused(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not exported by this project"):
        read_weights(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        read_weights(tmp_path / "none")
    with pytest.raises(UserError, match="train it first"):
        read_weights(tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"imagen": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path / "evil.ckpt")


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path):
    path = tmp_path / "w.safetensors"
    WEIGHTS.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"w\.safetensors' is damaged"):
        read_weights(path)


def test_a_stage_without_its_weights_file_says_what_it_is_taken_from(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    kept = {"config": {**CONFIG, "max_steps": 9}, "text_fingerprint": {}}
    torch.save({"state_dict": {}, "imagen": kept, "global_step": 5}, folder.checkpoints / checkpoint_name(5))
    read_weights(tmp_path)
    assert "has no weights.safetensors: taken from its newest checkpoint, step 5 of 9" in caplog.text


def test_a_run_is_held_by_one_and_leaves_nothing_if_nothing_came_to_be(tmp_path):
    folder = RunFolder(tmp_path / "toy" / "run")
    with folder.held():
        folder.start(CONFIG)
        with pytest.raises(UserError, match="is being trained by another process"), folder.held():
            pass
        folder.start(CONFIG)
    assert not (tmp_path / "toy").exists()
    with folder.held():
        folder.metrics.touch()
    with folder.held():
        assert folder.metrics.exists()
