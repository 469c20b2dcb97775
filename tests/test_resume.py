import re

import pytest
from torch import nn

from imagen.checkpoints import checkpoint_name, write_checkpoint
from imagen.errors import UserError
from imagen.faults import Rollback
from imagen.resume import Past, differences, forget_snapshots, go_back, in_vain, past_of
from imagen.runs import RunFolder
from imagen.warm_start import take_weights

CONFIG = {"max_steps": 10, "resume": "auto", "init_from": None, "network": {"_target_": "a.U", "width": 4}, "data": 1}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    for step in (2, 4, 6):
        checkpoint = {"imagen": {"config": CONFIG, "seconds": step * 1.5}, "global_step": step}
        write_checkpoint(checkpoint, made.checkpoints / checkpoint_name(step))
    made.snapshots.mkdir()
    for step in (2, 6):
        (made.snapshots / f"step_{step:09d}_0.1.safetensors").touch()
    return made


def damage(folder: RunFolder, *which: int) -> None:
    for path in [folder.all_checkpoints()[i] for i in which]:
        path.write_bytes(path.read_bytes()[:-50])


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_a_run_goes_on_from_its_newest_checkpoint_and_a_new_one_from_nothing(folder, tmp_path):
    assert past_of(CONFIG, folder) == Past(folder.all_checkpoints()[-1], 6, 9.0)
    assert past_of(CONFIG, RunFolder(tmp_path / "new")) == Past()


def test_damaged_ones_are_passed_over_said_and_kept(folder, caplog):
    damage(folder, 1, 2)
    assert past_of(CONFIG, folder).step == 2
    assert names(folder) == [checkpoint_name(2), *(f"{checkpoint_name(step)}.damaged" for step in (4, 6))]
    assert caplog.text.count("is damaged") == 2
    assert caplog.text.count("is kept as") == 2


def test_where_none_is_whole_nothing_begins_anew_unasked(folder):
    damage(folder, 0, 1, 2)
    with pytest.raises(UserError, match=r"none of the 3 checkpoints in .* is whole"):
        past_of(CONFIG, folder)
    assert len(folder.all_checkpoints()) == 3


def test_a_damaged_one_that_was_asked_for_is_refused(folder, tmp_path):
    damage(folder, 2)
    with pytest.raises(UserError, match="is damaged"):
        past_of({**CONFIG, "resume": str(folder.all_checkpoints()[-1])}, RunFolder(tmp_path / "new"))


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
@pytest.mark.parametrize(
    "take",
    [
        lambda path: past_of({**CONFIG, "resume": str(path)}, RunFolder(path.parent / "new")),
        lambda path: take_weights(nn.Linear(1, 1), path, CONFIG),
    ],
)
def test_what_is_no_checkpoint_is_told_without_words_of_the_libraries(tmp_path, name, take):
    path = tmp_path / name
    path.write_bytes(b"garbage" * 9)
    with pytest.raises(UserError, match="is damaged") as refused:
        take(path)
    assert not re.search(r"Error|[Pp]ickle|serializ|zip|header", str(refused.value))


def test_never_refuses_a_run_that_has_begun_and_names_what_goes_on(folder):
    with pytest.raises(UserError, match=r"resume=never but .* holds checkpoints: take resume=auto to go on from them"):
        past_of({**CONFIG, "resume": "never"}, folder)


def test_another_runs_checkpoint_is_past_once_a_run_has_its_own(folder, tmp_path):
    given = {**CONFIG, "resume": str(folder.all_checkpoints()[0])}
    other = RunFolder(tmp_path / "other")
    assert past_of(given, other).step == 2
    write_checkpoint(
        {"imagen": {"config": CONFIG, "seconds": 1.0}, "global_step": 5}, other.checkpoints / checkpoint_name(5)
    )
    assert past_of(given, other).step == 5


def test_an_older_one_of_its_own_is_refused_with_what_to_delete(folder):
    oldest, *later = folder.all_checkpoints()
    to_delete = rf"delete {later[0].name}, {later[1].name} to go back to it, or take resume=auto"
    for _ in range(2):
        with pytest.raises(UserError, match=to_delete):
            past_of({**CONFIG, "resume": str(oldest)}, folder)
    assert past_of({**CONFIG, "resume": str(later[-1])}, folder).step == 6
    for path in later:
        path.unlink()
    assert past_of({**CONFIG, "resume": str(oldest)}, folder).step == 2


def test_all_of_one_and_the_weights_of_another_are_not_to_be_had_at_once(folder, tmp_path):
    both = {**CONFIG, "resume": str(folder.all_checkpoints()[0]), "init_from": "x"}
    with pytest.raises(UserError, match="give one of the two"):
        past_of(both, RunFolder(tmp_path / "new"))
    assert past_of({**CONFIG, "init_from": "x"}, folder).step == 6  # it began with those


def test_what_a_checkpoint_is_a_state_of_must_not_differ(folder):
    with pytest.raises(UserError, match=r"network\.width 4 there, 8 here"):
        past_of({**CONFIG, "network": {"_target_": "a.U", "width": 8}, "data": 2}, folder)
    assert past_of({**CONFIG, "data": 2}, folder).step == 6


def test_what_changes_nothing_learnt_or_takes_effect_anew_may_differ():
    there = {"_target_": "a.Adafactor", "lr": 0.1, "fused": True, "min_factored": 128}
    encoder = {"_target_": "a.T5", "path": "/here", "max_length": 8}
    here = {**there, "lr": 0.2, "fused": False}
    old = {"optimizer": there, "text_encoder": encoder, "data": {"root": "a"}}
    assert differences(old, {"optimizer": here, "text_encoder": {**encoder, "path": "/there"}, "data": {}}) == []
    changed = {"optimizer": {**here, "min_factored": 1}, "text_encoder": {**encoder, "max_length": 9}}
    assert differences(old, changed) == [
        "optimizer.min_factored 128 there, 1 here",
        "text_encoder.max_length 8 there, 9 here",
    ]


def test_later_snapshots_are_forgotten_and_checkpoints_stay(folder):
    forget_snapshots(folder, 4)
    assert len(folder.all_snapshots()) == 1
    assert len(folder.all_checkpoints()) == 3


@pytest.mark.parametrize(("last_good", "back_to"), [(5, 4), (9, 6), (1, 2)])  # at worst the oldest there is
def test_going_back_leaves_the_last_checkpoint_before_the_row(folder, last_good, back_to):
    behind = go_back(folder, 9, last_good, [])
    assert past_of(CONFIG, folder).step == back_to
    assert (behind[-1].failed, behind[-1].back_to) == (9, back_to)
    assert folder.all_checkpoints()[-1].name == checkpoint_name(back_to)


@pytest.mark.parametrize(
    ("failed", "last_good", "count"), [([5], 6, 0), ([5], 5, 1), ([6, 9], 9, 2), ([3, 3, 5], 5, 1)]
)
def test_a_way_back_that_led_on_counts_no_more(folder, failed, last_good, count):
    assert in_vain(folder, last_good, [Rollback(step, 2) for step in failed]) == count
