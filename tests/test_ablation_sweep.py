"""Sweeps: what Hydra is given, what is prepared, and what becomes of points that fail, are done, or are another's."""

import errno
import itertools
import json
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from imagen.ablation import as_asked, prepare, run, run_lock, sweep
from imagen.ablation.asked import Asked
from imagen.ablation.failures import failures, forget_failure, note_failure
from imagen.ablation.processes import Processes
from imagen.ablation.study import Study, read_study
from imagen.ablation.sweep import evaluation_of
from imagen.ablation.table import write_rows
from imagen.build import run_config
from imagen.cli import CONF, compose, explain
from imagen.errors import GoneError, UserError
from imagen.hold import hold
from imagen.runs import RunFolder
from imagen.training import train

STUDY = ["-m", "ablation=text_layernorm", "scale=demo"]
MEASURE = run.measure


@pytest.fixture
def commands(monkeypatch):
    """What a sweep runs before its first point, run by nobody."""
    came: list[tuple[str, ...]] = []
    monkeypatch.setattr(prepare, "_run", came.append)
    return came


def expanded(*arguments):
    with as_asked(arguments) as given:
        return given


def test_other_command_lines_are_left_alone():
    assert expanded("experiment=toy", "-m", "seed=0,1") == ["experiment=toy", "-m", "seed=0,1"]


def test_an_ablation_becomes_its_multirun(tmp_path, commands):
    assert expanded(*STUDY, "seeds=2", f"output_dir={tmp_path}", "hydra/launcher=local") == [
        "-m",
        "experiment=lab_base16",
        "seed=0,1",
        "variant=with_norm,without",
        f"output_dir={tmp_path}",
        "hydra/launcher=local",
        "sweep=text_layernorm-demo",
    ]
    assert commands == [
        ("data_prep/openmoji.py", "root=data/openmoji", "sizes=[16,64]"),
        ("data_prep/embed_text.py", "root=data/openmoji", "text_encoder=minilm"),
    ], "once, whatever the number of points"


def test_the_smallest_scale_is_taken_where_none_is_said(tmp_path, commands, capsys):
    unsaid = [one for one in STUDY if one != "scale=demo"]
    assert expanded(*unsaid, f"output_dir={tmp_path}") == expanded(*STUDY, f"output_dir={tmp_path}")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("text_layernorm at scale=demo: ")
    assert "ablation=text_layernorm scale=demo" in last


def test_what_the_command_line_sets_wins(tmp_path, commands):
    given = expanded(*STUDY, "variant=without", "seed=7", f"output_dir={tmp_path}")
    assert [argument for argument in given if argument.startswith(("variant", "seed"))] == ["variant=without", "seed=7"]


def test_super_resolution_has_its_base_trained_once_before(tmp_path, commands):
    expanded("-m", "ablation=skip_scaling", "scale=demo", "seeds=2", f"output_dir={tmp_path}", "data.root='my, data'")
    assert commands[-1] == ("train.py", "experiment=lab_base16", f"output_dir={tmp_path}", 'data.root="my, data"')
    assert sum(command[0] == "train.py" for command in commands) == 1


def test_a_base_that_another_ablation_has_is_waited_for_and_not_trained_again(tmp_path, commands, monkeypatch, capsys):
    asked = ["-m", "ablation=skip_scaling", "scale=demo", f"output_dir={tmp_path}"]
    (base,) = read_study("skip_scaling", "demo").bases(Asked.of(asked).points()[0].cfg)

    def ended(path, *, wait=False):
        if wait:  # by then the other has trained it
            base.run.path.mkdir(parents=True)
            base.run.done.write_text("{}")
        return hold(path)

    monkeypatch.setattr(run_lock, "hold", ended)
    (tmp_path / "ablations").mkdir()
    with run_lock.run_lock(base):
        shutil.rmtree(base.run.path)
        expanded(*asked)
    assert "waiting for another ablation" in capsys.readouterr().out
    assert not [command for command in commands if command[0] == "train.py"]


def test_what_is_prepared_runs_where_the_user_is_and_alone(tmp_path, monkeypatch, capfd):
    script = tmp_path / "the project" / "there.py"
    script.parent.mkdir()
    script.write_text(
        "import os, sys; print(os.getcwd(), sys.argv[1:], os.environ.get('RANK')); sys.exit(len(sys.argv) - 2)"
    )
    (tmp_path / "user").mkdir()
    monkeypatch.setattr(prepare, "CONF", script.parent / "conf")
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setenv("RANK", "0")
    prepare._run(["there.py", "root=my data"])
    assert f"{tmp_path / 'user'} ['root=my data'] None" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"`python '../the project/there.py' a b`, which the sweep needs.* status 1"):
        prepare._run(["there.py", "a", "b"])


def test_each_encoder_reads_the_captions_once(tmp_path, commands):
    expanded("-m", "ablation=encoder_size", "scale=demo", "seeds=2", f"output_dir={tmp_path}")
    read = [command for command in commands if "data_prep/embed_text.py" in command]
    assert len(read) == len(read_study("encoder_size", "demo").variants)
    assert read[0][2:] == ("text_encoder=minilm", "text_encoder.num_layers=0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ablation=unet_size", "scale=demo"], "ablation=unet_size is a multirun: add -m"),
        (["-m", "seeds=3"], "scale and seeds are of an ablation"),
        (["-m", "scale=gpu"], "scale and seeds are of an ablation"),
    ],
)
def test_half_of_it_is_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        expanded(*arguments)


def test_an_ablation_of_sampling_is_an_evaluation_of_ones_own_stages():
    given = evaluation_of(["-m", "ablation=threshold", "scale=demo", "seeds=2", "stages=[a]", "num_measured=8"])
    assert given[0] == "-m"
    assert given[-3:] == ["output_dir=outputs/evaluations/threshold-demo", "stages=[a]", "num_measured=8"]
    assert not any(argument.startswith(("ablation", "num_measured=2")) for argument in given)
    said = OverridesParser.create().parse_overrides([next(part for part in given if part.startswith("axes="))])
    assert said[0].value() == {"seed": [0, 1], **read_study("threshold", "demo").axes}
    with pytest.raises(UserError, match=r"ablation=unet_size trains width_16, .*: run python train.py -m"):
        evaluation_of(["ablation=unet_size", "scale=demo", "stages=[a]"])
    with pytest.raises(UserError, match=r"num_measured=8,9 sweeps a key, .* give seeds="):
        evaluation_of(["-m", "ablation=threshold", "stages=[a]", "num_measured=8,9"])


def test_failed_points_are_listed_at_the_end_until_they_succeed(tmp_path, commands, capsys):
    folder = read_study("text_layernorm", "demo").folder(tmp_path)
    asked = [*STUDY, f"output_dir={tmp_path}"]
    point = Asked.of(asked).points()[1]
    with pytest.raises(SystemExit, match="1 of 2 points failed"), as_asked(asked):
        note_failure(folder, point.key, "the loss\nis not finite", "python train.py a=b")
    assert "failed: without-s0: the loss is not finite\n  python train.py a=b" in capsys.readouterr().err
    point.evaluation.mkdir(parents=True)
    (point.evaluation / "report.json").touch()
    for others in ("max_steps=3", 'measure=["num_measured=3"]', "variant=with_norm"):
        with as_asked([*asked, others]):
            pass  # of whose points none has failed
    with as_asked(asked):
        forget_failure(folder, point.key)
    assert failures(folder) == {}
    report = f"python -m imagen.report ablation=text_layernorm scale=demo output_dir={tmp_path}"
    assert capsys.readouterr().out.endswith(f"1 of 2 points are there: {report}\n")


@pytest.mark.parametrize("first", [True, False])
def test_of_several_processes_the_first_prepares_when_all_have_met(tmp_path, commands, monkeypatch, first):
    met: list[int] = []

    class Met:
        def told_by_first(self, find):
            met.append(len(commands))
            return find() if first else None

    monkeypatch.setattr(sweep, "are_several", lambda: True)
    monkeypatch.setattr(sweep.Processes, "of", lambda *_: Met())
    expanded(*STUDY, f"output_dir={tmp_path}")
    assert met == [0], "before anything is prepared"
    assert bool(commands) is first


def test_a_table_that_is_none_is_told_before_anything_is_prepared(tmp_path, commands):
    with pytest.raises(UserError, match="does not exist"):
        expanded(*STUDY, f"output_dir={tmp_path}", f"finished={tmp_path}/none.csv")
    assert commands == []


@pytest.fixture
def at_a_point(tmp_path, monkeypatch):
    """The second of a multirun's points, and what is done there."""
    done: list[str] = []
    monkeypatch.setattr(run, "train", lambda cfg: done.append("trained"))
    monkeypatch.setattr(run, "measure", lambda study, point, _: done.append(f"measured {point.name}"))
    study = read_study("text_layernorm", "demo")
    study.store()
    overrides = ["experiment=lab_base16", "variant=without", "seed=3", "sweep=text_layernorm-demo"]
    cfg = compose("train", [*overrides, f"output_dir={tmp_path}"])
    hydra = HydraConfig.instance()
    monkeypatch.setattr(hydra, "cfg", compose_hydra(overrides))
    return cfg, study, done


def compose_hydra(overrides):
    own = {"mode": "MULTIRUN", "runtime": {"choices": {"variant": "without"}}, "overrides": {"task": overrides}}
    return OmegaConf.create({"hydra": own})


def test_a_point_is_trained_and_measured(at_a_point):
    cfg, study, done = at_a_point
    run.run_point(cfg)
    assert done == ["trained", "measured without-s3"]
    assert failures(study.folder(cfg.output_dir)) == {}


def test_a_point_that_fails_is_noted_and_the_sweep_goes_on(at_a_point, monkeypatch, capsys):
    cfg, study, done = at_a_point
    monkeypatch.setattr(run, "measure", lambda *_: (_ for _ in ()).throw(UserError("weights are missing")))
    run.run_point(cfg)
    failed = failures(study.folder(cfg.output_dir))
    key = study.of("without", cfg).key
    assert failed[key]["error"] == "weights are missing"
    assert failed[key]["command"].startswith("python train.py experiment=lab_base16 variant=without")
    assert "without-s3 failed: weights are missing" in capsys.readouterr().err
    monkeypatch.setattr(run, "measure", lambda *_: done.append("again"))
    run.run_point(cfg)
    assert done[-1] == "again"
    assert failures(study.folder(cfg.output_dir)) == {}


def test_a_point_for_which_there_is_no_room_says_so_without_a_traceback(at_a_point, monkeypatch, capsys, caplog):
    cfg, study, _ = at_a_point
    full = OSError(errno.ENOSPC, "No space left on device", "step_000000020.ckpt")
    monkeypatch.setattr(run, "train", lambda cfg: (_ for _ in ()).throw(full))
    run.run_point(cfg)
    (failed,) = failures(study.folder(cfg.output_dir)).values()
    assert failed["error"] == (
        "step_000000020.ckpt cannot be used: No space left on device: make room and run the same command again"
    )
    assert caplog.text == ""


def test_a_stopped_point_stops_the_sweep(at_a_point, monkeypatch):
    cfg, study, _ = at_a_point
    monkeypatch.setattr(run, "train", lambda cfg: sys.exit(143))
    with pytest.raises(SystemExit):
        run.run_point(cfg)
    assert failures(study.folder(cfg.output_dir)) == {}


def test_a_point_that_another_worker_holds_is_left_to_it(at_a_point, capsys):
    cfg, study, done = at_a_point
    folder = study.folder(cfg.output_dir)
    folder.mkdir(parents=True)
    with hold(folder / f".{study.of('without', cfg).key}"):
        run.run_point(cfg)
    assert done == []
    assert "without-s3: another worker is at it" in capsys.readouterr().out


def test_a_run_that_another_ablation_has_is_waited_for(at_a_point, monkeypatch, capsys):
    cfg, study, done = at_a_point
    point = study.of("without", cfg)
    folder = study.folder(cfg.output_dir)
    folder.mkdir(parents=True)
    waited: list[Path] = []

    def spied(path, *, wait=False):
        waited.extend([path] * wait)
        return hold(path, wait=False)

    monkeypatch.setattr(run_lock, "hold", spied)
    with hold(folder.parent / f".{cfg.name}-{point.run.path.name}"):
        run.run_point(cfg)
    assert waited == [folder.parent / f".{cfg.name}-{point.run.path.name}"]
    assert "without-s3: waiting for another ablation" in capsys.readouterr().out
    assert done == ["trained", "measured without-s3"]


def test_a_run_that_is_trained_by_hand_is_noted_as_such(at_a_point, monkeypatch):
    cfg, study, done = at_a_point
    monkeypatch.setattr(run, "train", train)
    with RunFolder.of(run_config(cfg)).held():
        run.run_point(cfg)
    assert done == []
    (failed,) = failures(study.folder(cfg.output_dir)).values()
    assert "is being trained by another process: wait for it" in failed["error"]


def test_a_point_without_time_is_noted_and_the_sweep_goes_on(at_a_point, monkeypatch):
    cfg, study, _ = at_a_point
    monkeypatch.setattr(run, "train", lambda cfg: sys.exit(128))
    run.run_point(cfg)
    (failed,) = failures(study.folder(cfg.output_dir)).values()
    assert "was stopped by trainer.max_time or a callback: give it more time" in failed["error"]


def test_each_training_seed_is_one_of_sampling_too(at_a_point, monkeypatch):
    cfg, study, _ = at_a_point
    came: list[list[str]] = []
    monkeypatch.setattr(run.evaluation, "measure", lambda stages, folder, overrides: came.append(overrides))
    point = study.of("without", cfg)
    monkeypatch.setattr(run, "measure", MEASURE)
    run.run_point(cfg)
    assert came == [study.measuring([], "seed=3")]
    cfg.measure = ["seed=5"]
    MEASURE(study, study.of("without", cfg), Processes.of(cfg, point.run))
    assert "seed=3" not in came[1]
    assert "seed=5" in came[1]


def test_a_point_is_picked_by_its_sweep_alone(tmp_path):
    point = ["experiment=lab_base16", "variant=layers_0", "seed=1"]
    store = ConfigStore.instance()
    store.repo = {name: node for name, node in store.repo.items() if name != "variant"}
    with pytest.raises(HydraException) as refused:
        compose("train", point)
    assert explain(refused.value, "train").startswith("variant is of an ablation: add sweep=")
    with as_asked([*point, "sweep=encoder_size-demo"]) as given:
        assert compose("train", given).text_encoder.num_layers == 0
        with pytest.raises(HydraException) as unknown:
            compose("train", ["experiment=lab_base16", "variant=layers_3", "seed=1"])
    assert "the nearest is layers_" in explain(unknown.value, "train")
    with pytest.raises(UserError, match="scale=huge is not an option"):
        expanded("sweep=encoder_size-huge")


class Second(Processes):
    """The second of two, whose first says ``told`` and has nothing to complain of."""

    def __init__(self, told: bool) -> None:
        self.told = told
        self.index, self.count, self._device = 1, 2, "cpu"

    def told_by_first(self, find):
        return self.told

    def gathered(self, value, patience=None):
        return [None, value]


@pytest.mark.parametrize("told", [True, False])
def test_of_several_processes_the_first_alone_holds_and_notes(at_a_point, monkeypatch, told):
    cfg, study, done = at_a_point
    monkeypatch.setattr(run.Processes, "of", lambda *_: Second(told))
    folder = study.folder(cfg.output_dir)
    run.run_point(cfg)
    assert done == ["trained", "measured without-s3"] * told
    assert not [*folder.glob(".*")]
    monkeypatch.setattr(run, "train", lambda cfg: sys.exit(1))  # as it does where the first has failed
    run.run_point(cfg)
    assert failures(folder) == {}
    assert Second(told).share() == ["worker_index=1", "worker_count=2", "device=cpu"]


class Alone(Second):
    """One that the others do not come to."""

    def gathered(self, value, patience=None):
        raise GoneError(f"waited for {patience}")


def test_a_process_that_fails_alone_notes_it_and_ends(at_a_point, monkeypatch):
    cfg, study, _ = at_a_point
    monkeypatch.setattr(run.Processes, "of", lambda *_: Alone(True))
    folder = study.folder(cfg.output_dir)
    for error, noted in ((GoneError("the first has ended"), []), (UserError("it is damaged"), ["it is damaged"])):
        monkeypatch.setattr(run, "train", Mock(side_effect=error))
        with pytest.raises(GoneError, match="the first has ended" if not noted else f"waited for {run.SOON}"):
            run.run_point(cfg)
        assert [failure["error"] for failure in failures(folder).values()] == noted


@pytest.mark.parametrize("of", ["RANK WORLD_SIZE", "SLURM_PROCID SLURM_STEP_NUM_TASKS"])
def test_an_evaluation_is_shared_among_the_processes_of_torchrun_and_srun(of, monkeypatch):
    for name, value in zip(of.split(), "14", strict=True):
        monkeypatch.setenv(name, value)
    cfg = OmegaConf.load(CONF / "evaluate.yaml")
    assert (cfg.worker_index, cfg.worker_count) == (1, 4)


def kept_rows(study, point):
    """A row at every point of sampling, as a report of elsewhere has them."""
    who = {"ablation": study.name, "scale": study.scale, "variant": point.variant, "seed": point.seed}
    who |= {"run": point.run.path.name, "evaluation": point.evaluation.name, "fd_pixel": 1.0}
    return [who | dict(zip(study.axes, values, strict=True)) for values in itertools.product(*study.axes.values())]


def test_a_point_with_rows_is_not_run_again_and_has_not_failed(at_a_point, tmp_path, capsys):
    cfg, study, done = at_a_point
    point, folder = study.of("without", cfg), study.folder(cfg.output_dir)
    note_failure(folder, point.key, "weights are missing", "python train.py")
    write_rows(study, kept_rows(study, point), tmp_path / "kept.csv")
    cfg.finished = str(tmp_path / "kept.csv")
    run.run_point(cfg)
    assert done == []
    assert "its rows are in" in capsys.readouterr().out
    assert failures(folder) == {}


def test_a_point_with_half_its_rows_or_measured_otherwise_is_run(at_a_point, tmp_path):
    cfg, study, done = at_a_point
    rows = kept_rows(study, study.of("without", cfg))
    cfg.finished = str(tmp_path / "kept.csv")
    write_rows(study, rows[1:], tmp_path / "kept.csv")
    run.run_point(cfg)
    assert done == ["trained", "measured without-s3"]
    write_rows(study, rows, tmp_path / "kept.csv")
    cfg.measure = ["base.sampler.num_steps=4"]
    run.run_point(cfg)
    assert done == ["trained", "measured without-s3"] * 2


def test_a_study_knows_its_folder(tmp_path):
    study = read_study("encoder_size", "demo")
    assert isinstance(study, Study)
    assert study.folder(tmp_path) == tmp_path / "ablations" / "encoder_size-demo"
    assert json.dumps(study.plot)
