"""Sides are fair, shuffled and a function of the seed; controls are of their kind."""

from collections import Counter

import pytest

from imagen.human_eval.trials import Comparison, Control, choose_controls, make_trials, study_identity
from imagen.prompt_files import Prompt

PROMPTS = [Prompt(f"{kind} {i}", kind) for kind in ("one", "two") for i in range(10)]
COMPARISONS = [Comparison(prompt, [f"a {prompt.text}"], [f"b {prompt.text}"]) for prompt in PROMPTS]
CONTROLS = [Control(prompt, ["good"], ["spoilt"]) for prompt in PROMPTS[::3]]


def test_every_kind_has_a_on_either_side_as_often():
    _, truths = make_trials(COMPARISONS, [], 0)
    assert Counter((truth.kind, truth.a_is) for truth in truths.values()) == {
        (kind, side): 5 for kind in ("one", "two") for side in ("left", "right")
    }


def test_the_sides_are_those_that_the_truth_says():
    trials, truths = make_trials(COMPARISONS, CONTROLS, 3)
    assert len(trials) == len(truths) == 27
    for trial in trials:
        truth = truths[trial.id]
        assert (truth.a_is is None) != (truth.right_answer is None)
        assert (trial.kind, trial.caption) == (truth.kind, truth.prompt)
        expected = f"a {trial.caption}" if truth.a_is else "good"
        assert getattr(trial, truth.a_is or truth.right_answer) == [expected]


def test_the_order_says_nothing_of_the_truth():
    trials, truths = make_trials(COMPARISONS, CONTROLS, 0)
    assert [trial.id for trial in trials] == sorted(truths)
    assert list(truths) != sorted(truths)


def test_another_seed_is_another_study():
    first, again, other = (make_trials(COMPARISONS, CONTROLS, seed) for seed in (0, 0, 1))
    assert first == again
    assert study_identity(*first) == study_identity(*again) != study_identity(*other)
    sides = [[truth.a_is for truth in truths.values()] for _, truths in (first, other)]
    assert sides[0] != sides[1]


@pytest.mark.parametrize("count", [0, 3, 10, 15])
def test_controls_are_so_many_of_each_kind(count):
    chosen = choose_controls(PROMPTS, count, 0)
    assert Counter(prompt.kind for prompt, _, _ in chosen) == (
        {"one": min(count, 10), "two": min(count, 10)} if count else {}
    )
    assert all(prompt != other for prompt, other, _ in chosen)
    assert len({prompt for prompt, _, _ in chosen}) == len(chosen)
    assert abs(sum(1 if is_a else -1 for _, _, is_a in chosen)) <= 2


def test_a_single_prompt_is_its_own_other():
    prompt = Prompt("a cat")
    assert choose_controls([prompt], 5, 0) == [(prompt, prompt, True)]
