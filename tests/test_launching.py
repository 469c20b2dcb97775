import re
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import hydra
import lightning
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from processes import ROOT, free_port, on_two_ranks, running

from imagen import launching
from imagen.cli import CONF
from imagen.errors import UserError
from imagen.launching import (
    are_several,
    check_shared,
    check_started,
    differences,
    flattened,
    refuse_multirun,
    told_by_first,
)

TOY = ["train.py", "experiment=toy", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "callback=[]"]


def test_a_config_is_flat_by_its_full_keys():
    config = {"seed": 0, "network": {"width": 8, "mult": [1, 2]}, "logger": {}}
    assert flattened(config) == {"seed": "0", "network.width": "8", "network.mult": "[1, 2]", "logger": "{}"}


def test_keys_that_differ_are_named_with_two_ranks_values():
    configs = [{"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2", "c": "3"}]
    assert differences(configs) == ["b is 1 on rank 0 and 2 on rank 1", "c is missing on rank 0 and 3 on rank 2"]
    assert differences(configs[1:2] * 3) == []


def test_ranks_with_different_configs_all_stop_and_name_the_key(tmp_path: Path):
    commands = [[*TOY, f"output_dir={tmp_path}/out", f"optimizer.lr={lr}"] for lr in (0.001, 0.002)]
    said, statuses = on_two_ranks(commands, tmp_path, 200)
    assert statuses == [1, 1], said
    for one in said:
        assert "optimizer.lr is 0.001 on rank 0 and 0.002 on rank 1: start all of them with the same command" in one
        assert "Traceback" not in one


class Several(lightning.Trainer):
    """This process as one of three, to which the first says ``said``."""

    world_size, is_global_zero, strategy = 3, True, SimpleNamespace()

    def __init__(self, rank: int = 0, said: object = None) -> None:
        self.is_global_zero = rank == 0
        self.strategy = SimpleNamespace(broadcast=lambda own: own if rank == 0 else said)


def test_the_first_process_finds_for_all():
    assert told_by_first(Several(), lambda: "found") == "found"
    assert told_by_first(Several(1, ("found", False)), pytest.fail) == "found"


@pytest.mark.parametrize("kind", [UserError, OSError, RuntimeError, ImportError])
def test_whatever_goes_amiss_in_the_first_is_said_once_and_ends_all(kind: type[Exception]):
    def find() -> None:
        raise kind("amiss")

    first = Several()
    first.strategy.broadcast = lambda own: told.append(own) or own
    told: list[object] = []
    with pytest.raises(kind, match="amiss"):
        told_by_first(first, find)
    assert told == [(None, True)]
    with pytest.raises(SystemExit) as ended:
        told_by_first(Several(1, (None, True)), pytest.fail)
    assert ended.value.code == 1


def test_ranks_that_do_not_see_the_firsts_disk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = tmp_path / "a.ckpt"
    checkpoint.touch()
    monkeypatch.setattr(launching, "_gathered", lambda value: [value] * 3)
    check_shared(Several(), tmp_path, [checkpoint])
    assert list(tmp_path.iterdir()) == [checkpoint]
    for trainer, needed in ((Several(1, (".shared-x", False)), []), (Several(), [tmp_path / "none.ckpt"])):
        with pytest.raises(UserError, match=rf"rank 0 on \S+ does not see all that .* has in {tmp_path}: give all"):
            check_shared(trainer, tmp_path, needed)


def test_a_folder_in_which_the_first_cannot_write_ends_all(tmp_path: Path):
    with pytest.raises(OSError, match="none"):
        check_shared(Several(), tmp_path / "none", [])
    with pytest.raises(SystemExit):
        check_shared(Several(1, (None, True)), tmp_path, [])


FAULTS = {
    "the file that all should see": "from imagen import launching as at; name = 'NamedTemporaryFile'",
    "the empty caption": "from imagen import training as at; name = 'fill_null_text'",
    "the config": "from imagen.runs import RunFolder as at; name = 'start'",
    "snapshots": "from imagen import training as at; name = 'forget_snapshots'",
    "the log": "from imagen.metrics_log import MetricsLog as at; name = 'keep_until'",
}


@pytest.mark.drill
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_is_full_for_the_first_ends_all_at_once(tmp_path: Path, fault: str):
    script = tmp_path / "full.py"
    script.write_text(
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import train\n"
        f"{FAULTS[fault]}\n"
        "def full(*args, **kwargs):\n"
        "    print('full at', time.time())\n"
        "    raise OSError(28, 'No space left on device', 'here')\n"
        "if os.environ['RANK'] == '0':\n"
        "    setattr(at, name, full)\n"
        "train.run()\n"
    )
    command = [str(script), *TOY[1:], f"output_dir={tmp_path}/out", "trainer.strategy.timeout_minutes=5"]
    said, statuses = on_two_ranks([command] * 2, tmp_path, 200)
    assert time.time() - float(said[0].partition("full at ")[2].split()[0]) < 20  # and not five minutes
    assert statuses == [1, 1], said
    assert "here cannot be used: No space left on device: make room" in said[0]
    assert not [line for line in said[1].splitlines() if "rror" in line or "Traceback" in line], said[1]
    assert not list(tmp_path.glob("out/toy/*/.*"))


@pytest.mark.drill
@pytest.mark.parametrize("begun", [False, True])
def test_ranks_whose_folders_are_not_shared_do_not_train(tmp_path: Path, begun: bool):
    script = tmp_path / "apart.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport train\nos.chdir(sys.argv.pop(1))\ntrain.run()\n"
    )
    disks = [tmp_path / f"disk{rank}" for rank in range(2)]
    for disk in disks:
        disk.mkdir()
    options = ["experiment=toy", "trainer.accelerator=cpu", "output_dir=out", "callback=[checkpoint]"]
    options += ["callback.checkpoint.every_n_steps=2", "max_steps=4", "validate_every_n_steps=4", "data.num_workers=0"]
    if begun:
        with running([str(script), str(disks[0]), *options], ROOT, tmp_path / "log") as process:
            assert process.wait(200) == 0, (tmp_path / "log").read_text()
        (folder,) = disks[0].glob("out/toy/*")
        for made in ("done.json", "weights.safetensors", "checkpoints/step_000000004.ckpt"):
            (folder / made).unlink()
    both = ["trainer=ddp", "trainer.devices=2", *options]
    said, statuses = on_two_ranks([[str(script), str(disk), *both] for disk in disks], tmp_path, 200)
    assert statuses == [1, 1], said
    for one in said:
        assert re.search(r"error: rank 1 on \S+ does not see all that .* has in out/toy/\S+: give all", one)
        assert "Traceback" not in one
    assert len(list(disks[0].glob("out/toy/*/checkpoints/*"))) == begun
    assert not list(disks[1].glob("out/toy/*"))


def trainer(devices: int) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp", logger=False, enable_checkpointing=False
    )


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A multirun is going on, at a point of its own."""
    task = ["experiment=toy", "optimizer.lr=0.1", "prompts=[a, b]"]
    node = SimpleNamespace(mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=task))
    config = SimpleNamespace(initialized=lambda: True, get=lambda: node)
    monkeypatch.setattr(launching, "HydraConfig", config)


@pytest.mark.parametrize(
    ("devices", "local", "world", "remedy"),
    [
        (1, 2, 2, "set trainer=ddp trainer.devices=2 trainer.num_nodes=1"),
        (4, 2, 2, "set trainer.devices=2 trainer.num_nodes=1"),
        (2, 2, 4, "set trainer.devices=2 trainer.num_nodes=2"),
    ],
)
def test_processes_that_the_config_does_not_train_on_are_refused(monkeypatch, devices, local, world, remedy):
    trainer = lightning.Trainer(accelerator="cpu", devices=devices, logger=False, enable_checkpointing=False)
    check_started(trainer)
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": local, "WORLD_SIZE": world}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=remedy):
        check_started(trainer)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(devices))
    monkeypatch.setenv("WORLD_SIZE", str(devices))
    check_started(trainer)


@pytest.mark.usefixtures("sweep")
def test_a_multirun_that_would_start_processes_is_refused_with_the_command_that_works():
    works = r"--nproc-per-node=2 train.py experiment=toy optimizer.lr=0.1 'prompts=\[a, b\]'`"
    with pytest.raises(UserError, match=works):
        refuse_multirun(trainer(2))


@pytest.mark.usefixtures("sweep")
def test_a_multirun_of_single_processes_or_of_ranks_from_outside_goes_on(monkeypatch: pytest.MonkeyPatch):
    refuse_multirun(trainer(1))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    refuse_multirun(trainer(2))


@pytest.mark.parametrize(("launcher", "module"), [("slurm", "submitit"), ("local", "joblib")])
def test_a_launchers_options_compose(launcher: str, module: str):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        sizes = ["trainer=ddp", "trainer.devices=8", "trainer.num_nodes=4"]
        cfg = hydra.compose("train", [f"hydra/launcher={launcher}", *sizes], return_hydra_config=True)
    node = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    assert module in node["_target_"]
    if launcher == "slurm":
        assert (cfg.hydra.launcher.nodes, cfg.hydra.launcher.tasks_per_node) == (4, 8)
        assert cfg.hydra.launcher.additional_parameters.signal.startswith("USR1@")  # to which Checkpoint listens


@pytest.mark.drill
def test_srun_starts_the_ranks_of_one_run(tmp_path: Path):
    command = [*TOY, f"output_dir={tmp_path}/out", "max_steps=2", "validate_every_n_steps=2"]
    common = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "77"}
    common |= {"SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_PORT": str(free_port())}
    common |= {"SLURM_JOB_NUM_NODES": "1"}
    with ExitStack() as stack:
        ranks = []
        for rank in range(2):
            own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
            ranks.append(stack.enter_context(running(command, ROOT, tmp_path / f"{rank}.log", **common, **own)))
        assert [process.wait(400) for process in ranks] == [0, 0], (tmp_path / "0.log").read_text()
    (folder,) = tmp_path.glob("out/toy/*")
    assert (folder / "done.json").is_file()


@pytest.mark.drill
def test_torchrun_starts_the_ranks_of_one_run(tmp_path: Path):
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", *TOY]
    command += [f"output_dir={tmp_path}/out", "max_steps=2", "validate_every_n_steps=2"]
    with running(command, ROOT, tmp_path / "log") as process:
        assert process.wait(400) == 0, (tmp_path / "log").read_text()
    (folder,) = tmp_path.glob("out/toy/*")
    assert (folder / "done.json").is_file()


@pytest.mark.drill
def test_a_sweep_trains_each_point_and_refuses_to_start_processes_itself(tmp_path: Path):
    single = ["train.py", "-m", "hydra/launcher=local", "experiment=toy", "trainer.accelerator=cpu", "callback=[]"]
    single += [f"output_dir={tmp_path}/out", "max_steps=2", "validate_every_n_steps=2", "seed=0,1"]
    single += [f"hydra.sweep.dir={tmp_path}/sweep"]
    with running(single, ROOT, tmp_path / "log") as process:
        assert process.wait(400) == 0, (tmp_path / "log").read_text()
    assert len(list(tmp_path.glob("out/toy/*/done.json"))) == 2
    several = ["train.py", "-m", *TOY[1:], f"output_dir={tmp_path}/several", "seed=0,1"]
    with running(several, ROOT, tmp_path / "log") as process:
        assert process.wait(400) == 1
    said = (tmp_path / "log").read_text()
    assert "torchrun --standalone --nproc-per-node=2 train.py experiment=toy" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("several/toy/*"))


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"WORLD_SIZE": "2"}, True),
        ({"SLURM_NTASKS": "8"}, True),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, False),
    ],
)
def test_processes_that_were_started_together_are_told_by_their_launchers_variables(monkeypatch, variables, several):
    for name in ("WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert are_several() is several
