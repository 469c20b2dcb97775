import subprocess
import sys
from pathlib import Path

import pytest

from imagen.cli import compose, explain

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


def test_an_unknown_option_lists_those_there_are():
    with pytest.raises(Exception) as caught:  # noqa: PT011
        compose("train", ["sampler=nonesuch"])
    sentence = explain(caught.value, "train")
    assert "ddim" in sentence
    assert "\n" not in sentence


def test_a_script_ends_with_one_sentence_and_status_1():
    error = said("train.py", "experiment=toy", "network.widht=3")
    assert error.strip().count("\n") == 0
    assert "network.width" in error


def test_a_badly_quoted_list_shows_how_to_quote():
    assert "quote a list" in said("sample.py", "stages=[a", "prompts=[x")


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
