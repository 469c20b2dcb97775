import pytest

from imagen import demo
from imagen.cli import compose


def test_the_demos_stages_chain_and_read_one_set_with_one_encoder():
    configs = [compose("train", [f"experiment={name}"]) for name in demo.STAGES]
    chain = [(cfg.low_resolution, cfg.resolution) for cfg in configs]
    assert chain == [(None, 16), (16, 64), (64, 256)]
    assert {cfg.data.root for cfg in configs} == {demo.DATA}
    assert {cfg.text_encoder.name for cfg in configs} == {"minilm"}


def test_a_step_that_fails_ends_the_demo_with_its_command():
    with pytest.raises(SystemExit, match=r"train\.py nonsense.* ended with status 1"):
        demo._run("train.py", "nonsense=1")
