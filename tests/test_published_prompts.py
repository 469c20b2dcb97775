"""The published sets are recognised, whole or damaged; the real files are taken from where the environment says."""

import logging
import os

import pytest

from imagen.prompt_files import Prompt
from imagen.prompts import read_prompts_and_kinds
from imagen.published_prompts import SETS, digest, recognise

DRAWBENCH, PARTI, GENEVAL = SETS
FILES = {"PartiPrompts": "PARTI_PROMPTS", "GenEval": "GENEVAL", "DrawBench": "DRAWBENCH"}


def of_counts(counts: dict[str, int]) -> list[Prompt]:
    return [Prompt(f"{kind} {i}", kind) for kind, n in counts.items() for i in range(n)]


def test_the_sets_have_the_sizes_that_their_papers_give():
    assert [(one.name, sum(one.counts.values()), len(one.counts)) for one in SETS] == [
        ("DrawBench", 200, 11),
        ("PartiPrompts", 1632, 12),
        ("GenEval", 553, 6),
    ]


def test_a_set_without_a_known_hash_goes_by_its_counts():
    prompts = of_counts(DRAWBENCH.counts)
    assert recognise(prompts) == (DRAWBENCH, "")
    assert recognise(prompts[1:]) == (None, "199 of 200 prompts of DrawBench (Colors 24 of 25)")


def test_a_set_with_a_known_hash_must_have_its_prompts():
    assert recognise(of_counts(GENEVAL.counts)) == (None, "as many prompts as GenEval, but not the same")


def test_prompts_of_other_kinds_are_of_no_set():
    assert recognise([Prompt("a cat"), Prompt("a dog")]) == (None, "")
    assert recognise([Prompt("a cat", "Animals"), Prompt("a mug", "Artifacts")]) == (None, "")
    assert recognise(read_prompts_and_kinds("lab")) == (None, "")


def test_the_hash_is_of_the_prompts_alone():
    assert digest([Prompt("a", "x"), Prompt("b", "y")]) == digest([Prompt("a"), Prompt("b")]) != digest([Prompt("ab")])


@pytest.mark.parametrize("published", SETS, ids=lambda one: one.name)
def test_the_real_file_is_recognised_and_a_damaged_one_is_not(published, tmp_path, caplog):
    variable = FILES[published.name]
    if variable not in os.environ:
        pytest.skip(f"{variable} names no file of {published.name}")
    caplog.set_level(logging.INFO)
    path = os.environ[variable]
    prompts = read_prompts_and_kinds(path)
    assert f"is {published.name}: {sum(published.counts.values())} prompts" in caplog.text
    theirs = {prompt.text.lower() for prompt in prompts}
    assert not theirs & {prompt.text.lower() for prompt in read_prompts_and_kinds("lab")}

    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    damaged = tmp_path / os.path.basename(path)
    damaged.write_text("\n".join([*lines[:100], *lines[110:]]), encoding="utf-8")
    caplog.clear()
    assert len(read_prompts_and_kinds(str(damaged))) == len(prompts) - 10
    assert f"prompts of {published.name}" in caplog.text
