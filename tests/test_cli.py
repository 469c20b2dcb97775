import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from imagen.cli import CONF, about, as_overrides, compose, explain, keys_of, main, one_sentence
from imagen.errors import UserError
from imagen.slots import register

ROOT = Path(__file__).parents[1]


def said(script: str, *arguments: str) -> str:
    """What a script that must fail says on stderr, having failed with status 1 and without a traceback."""
    result = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("network.widht=3", "network.widht", "network.width"),
        ("batchsize=3", "batchsize", "batch_size"),
        ("schedul=linear", "schedul", "schedule"),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(override, key, nearest):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever Hydra raises
        compose("train", ["experiment=toy", override])
    sentence = explain(caught.value, "train")
    assert f"'{key}'" in sentence
    assert nearest in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "optimizer=adamww",
            "optimizer=adamww is not an option of optimizer: the nearest is adamw; there are adafactor",
        ),
        ("experiment=toyy", "experiment=toyy is not an option of experiment: the nearest is toy; there are"),
        ("sampler=nonesuch", "sampler=nonesuch is not an option of sampler: there are ddim"),
        ("logger=[wandb,bord]", "logger=bord is not an option of logger: there are tensorboard, wandb"),
        ("sampling=imagen", "sampling is no choice of train.py but of sample.py and evaluate.py"),
        ("task=inpaint", "task is no choice of train.py but of sample.py"),
        ("experimnt=toy", "unknown config key 'experimnt': the nearest keys are experiment"),
    ],
)
def test_an_unknown_option_or_group_names_the_nearest_and_those_there_are(override, said):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        compose("train", [override])
    assert explain(caught.value, "train").startswith(said)


def test_a_choice_of_each_stage_shows_how_to_pick_it():
    register(["stages=[]"])
    with pytest.raises(Exception) as caught:  # noqa: PT011
        compose("evaluate", ["stages=[]", "guidance=none"])
    places = "guidance@base.guidance=..., guidance@sr1.guidance=..., guidance@sr2.guidance=..."
    assert explain(caught.value, "evaluate") == f"guidance is picked for each stage by itself: {places}"


def test_an_option_is_told_as_one_would_type_it():
    cfg = compose("train", ["experiment=toy"])
    assert as_overrides("text_encoder", cfg.text_encoder) == ["text_encoder=hash"]
    cfg.text_encoder.max_length = 32
    assert as_overrides("text_encoder", cfg.text_encoder) == ["text_encoder=hash", "text_encoder.max_length=32"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (
            OSError(28, "No space left on device", "a.tar"),
            "error: a.tar cannot be used: No space left on device: make room and run the same command again",
        ),
        (PermissionError(13, "Permission denied", "a.tar"), "error: a.tar cannot be used: Permission denied"),
        (FileNotFoundError(2, "No such file", "a.tar"), "error: a.tar cannot be used: No such file or directory"),
        (FileNotFoundError("bucket/a.tar"), "error: bucket/a.tar cannot be used: No such file or directory"),
    ],
)
def test_a_script_that_was_stopped_or_has_no_space_ends_without_a_traceback(error, status):
    with pytest.raises(SystemExit) as stopped, one_sentence("train"):
        raise error
    assert stopped.value.code == status


def test_a_script_ends_with_one_sentence_and_status_1():
    error = said("train.py", "experiment=toy", "network.widht=3")
    assert error.strip().count("\n") == 0
    assert "network.width" in error


def test_a_badly_quoted_list_shows_how_to_quote():
    assert "quote a list" in said("sample.py", "stages=[a", "prompts=[x")
    assert "'task' sets nothing: write key=value, or --help alone" in said("sample.py", "--help", "task")


def test_settings_of_an_option_that_was_exchanged_are_dropped():
    cfg = compose("train", ["experiment=toy", "ema=none", "sampler=ddpm"])
    assert set(cfg.ema) == {"_target_"}
    assert cfg.sampler.num_steps == 8
    assert "eta" not in cfg.sampler


def test_a_key_that_must_be_given_is_asked_for():
    assert "data.root is missing; give it as data.root=..." in said("train.py", "text_encoder=hash")
    assert "stages is missing" in said("sample.py")


def test_a_reader_that_has_enough_ends_a_script_quietly():
    program = "import sys; from imagen.cli import one_sentence\nwith one_sentence('train'):\n    print('x' * 10**6)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Writes an experiment of the user's, and composes it."""

    def composed(text: str, *overrides: str):
        for path in CONF.iterdir():
            (tmp_path / path.name).symlink_to(path) if path.name != "experiment" else None
        (tmp_path / "experiment").mkdir()
        header = "# @package _global_\ndefaults:\n  - override /data: synthetic\n  - override /network: unet_toy\n"
        (tmp_path / "experiment" / "mine.yaml").write_text(header + text)
        monkeypatch.setattr("imagen.cli.CONF", tmp_path)
        return compose("train", ["experiment=mine", *overrides])

    return composed


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("batchsize: 4", "batchsize", "batch_size"),
        ("netwrok: {width: 4}", "netwrok", "network"),
        ("callback: {chekpoint: {keep: 1}}", "callback.chekpoint", "callback.checkpoint"),
    ],
)
def test_an_experiment_with_an_unknown_key_is_refused(experiment, text, key, nearest):
    with pytest.raises(UserError, match=f"^unknown config key '{key}': the nearest keys are {nearest}"):
        experiment(text)


def test_an_experiment_with_known_keys_composes(experiment):
    cfg = experiment(
        "batch_size: 4\ncallback: {checkpoint: {keep: 1}}\nlogger: {wandb: {id: mine}}", "callback=[progress]"
    )
    assert cfg.batch_size == 4


def test_settings_of_an_option_that_was_exchanged_are_dropped_from_slots_and_both_schedules():
    register([])
    cfg = compose("sample", ["sampling=imagen", "guidance@base.guidance=none", "stages=[]"])
    assert set(cfg.base.guidance) == {"_target_"}
    assert cfg.sr1.guidance.weight == 8.0
    cfg = compose("train", ["experiment=toy", "+augmentation_schedule.base_resolution=4"])
    assert "base_resolution" not in cfg.augmentation_schedule


@pytest.mark.parametrize(
    ("script", "present", "absent"),
    [
        (
            "train.py",
            ["schedule, schedule@augmentation_schedule: cosine, ", "experiment: demo_base16, "],
            ["sampling:"],
        ),
        ("sample.py", ["sampler@base.sampler, sampler@sr1.sampler, ", "task: generate, "], ["metric:", "experiment:"]),
        ("evaluate.py", ["metric: clip_score, ", "sampling: imagen, "], ["task:", "network:"]),
        ("data_prep/embed_text.py", ["text_encoder: bert_base, "], ["network:", "data_prep:"]),
    ],
)
def test_help_lists_what_the_script_takes_and_no_more(script, present, absent):
    text = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(f"\n{line}" in text for line in present)
    assert not any(f"\n{line}" in text for line in absent)
    assert not re.search(r"(, |: )trained(_\w+)?(,|$)", text, flags=re.MULTILINE)  # options that are not for users
    assert "\noutput_dir: outputs" in text or "\nroot: data" in text  # the config follows


DATA_PREP = sorted(path.stem for path in (CONF / "data_prep").glob("*.yaml") if path.stem != "workers")


@pytest.mark.parametrize("script", DATA_PREP)
def test_help_says_what_a_script_does_and_what_each_of_its_keys_is(script):
    name = f"data_prep/{script}"
    assert f"python {name}.py " in about(name)
    told = keys_of(name).splitlines()
    for key in set(compose(name, [])) - {"text_encoder"}:  # which is among the choices
        assert any(line.startswith(f"{key}:") for line in told), key


def test_help_explains_what_is_picked_and_what_other_files_bring():
    told = keys_of("data_prep/filter")
    assert told.startswith("safety: null # must be picked")
    assert "\n\n# its caption\nmax_caption_length: 1000 # characters\n" in told
    assert "\nnum_workers: 0 # processes on this machine" in told
    assert "\nworker_count: $${oc.decode" in told  # a template, in which $ begins a name
    assert "@package" not in told
    assert "defaults" not in told


def test_a_multirun_is_asked_for_at_any_place(tmp_path, monkeypatch):
    seeds = []
    script = main("train")(lambda cfg: seeds.append(cfg.seed))
    words = ["experiment=toy", f"hydra.sweep.dir={tmp_path}", "seed=1,2"]
    for place in (1, 3):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["train.py", *words[:place], "-m", *words[place:]])
        script()
    assert seeds == [1, 2] * 2
