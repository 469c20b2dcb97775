"""What counts as safe: a score on the right side, and nothing that has none."""

import json
import math

import pytest

from imagen.errors import UserError
from imagen.safety import AllowedWords, MaxScore, NoSafety, lookup, number


@pytest.mark.parametrize(("score", "safe"), [(0.0, True), (0.1, True), (0.11, False), (1, False), (0, True)])
def test_a_score_is_held_against_the_threshold(score, safe):
    assert MaxScore(field="punsafe", threshold=0.1).safe({"punsafe": score}) == safe


@pytest.mark.parametrize("info", [{}, {"punsafe": None}, {"punsafe": "0.01"}, {"punsafe": math.nan}, {"punsafe": True}])
def test_what_has_no_readable_score_is_unsafe(info):
    assert not MaxScore(field="punsafe", threshold=1.0).safe(info)


def test_words():
    safety = AllowedWords(field="NSFW", allowed=["UNLIKELY"])
    assert safety.safe({"NSFW": "UNLIKELY"})
    assert not any(
        safety.safe(info) for info in ({"NSFW": "UNSURE"}, {"NSFW": "NSFW"}, {"NSFW": None}, {"NSFW": []}, {})
    )


def test_none_keeps_everything():
    assert NoSafety().safe({"punsafe": 1.0})


def test_fields_may_lie_within_fields():
    info = json.loads('{"stability_metadata": {"p_nsfwdf": 0.02, "deep": {"er": 1}}, "a.b": 2, "a": {"b": 3}}')
    assert lookup(info, "stability_metadata.p_nsfwdf") == 0.02
    assert lookup(info, "stability_metadata.deep.er") == 1
    assert lookup(info, "a.b") == 2  # as it stands goes first
    assert lookup(info, "stability_metadata.none") is None
    assert number(info, "stability_metadata") is None
    assert MaxScore(field="stability_metadata.p_nsfwdf", threshold=0.1).safe(info)


def test_unfit_settings_are_refused():
    with pytest.raises(UserError, match=r"safety\.threshold=1\.5"):
        MaxScore(field="punsafe", threshold=1.5)
    with pytest.raises(UserError, match=r"safety\.allowed="):
        AllowedWords(field="NSFW", allowed=[])
