"""Every rule, on a sample that breaks it and nothing else."""

import math

import pytest

from imagen.errors import UserError
from imagen.prep.filter.rules import Rules, read_blocklist
from imagen.safety import MaxScore, NoSafety

FIELDS = {
    "similarity": ["similarity", "clip_similarity_vitl14"],
    "aesthetic": ["aesthetic", "stability_metadata.aes_scorelv2"],
    "watermark": ["pwatermark"],
    "language": ["LANGUAGE"],
}
GOOD = {
    "fault": None,
    "width": 300,
    "height": 400,
    "original": 300,
    "spread": 30.0,
    "caption_length": 20,
    "phash": bytes(8),
    "sha256": bytes(32),
    "info": {"similarity": 0.3, "aesthetic": 5.0, "pwatermark": 0.1, "LANGUAGE": "en", "punsafe": 0.01},
}


def rules(**changed):
    strict = {"min_similarity": 0.28, "min_aesthetic": 4.5, "max_watermark": 0.8, "languages": ["en", "fr"]}
    plain = {"min_size": 256, "max_aspect": 3.0, "min_spread": 2.0, "max_caption_length": 1000}
    rest = {"fields": FIELDS, "safety": MaxScore(field="punsafe", threshold=0.1), "blocklist": frozenset()}
    return Rules(**(plain | strict | rest | changed))


def changed(**values):
    info = {name: value for name, value in values.items() if name not in GOOD}
    return {**GOOD, **{name: value for name, value in values.items() if name in GOOD}, "info": GOOD["info"] | info}


def test_a_good_sample_stays():
    assert rules().reason(GOOD) is None


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("truncated", {"fault": "truncated"}),
        ("unsafe", {"punsafe": 0.2}),
        ("unsafe", {"punsafe": None}),
        ("too small", {"width": 255}),
        ("too small", {"height": 255, "width": 256}),
        ("too small", {"original": 200}),
        ("extreme aspect", {"width": 901}),
        ("extreme aspect", {"height": 901}),
        ("near-constant", {"spread": 1.9}),
        ("empty caption", {"caption_length": 0}),
        ("overlong caption", {"caption_length": 1001}),
        ("similarity", {"similarity": 0.27}),
        ("aesthetic", {"aesthetic": 4.4}),
        ("watermark", {"pwatermark": 0.9}),
        ("language", {"LANGUAGE": "de"}),
    ],
)
def test_each_rule(reason, values):
    height = {"height": 300} if values.get("width") == 901 else {}
    assert rules().reason(changed(**values, **height)) == reason


@pytest.mark.parametrize(
    "values", [{"width": 256}, {"width": 900, "height": 300}, {"caption_length": 1000}, {"spread": 2.0}]
)
def test_thresholds_themselves_pass(values):
    assert rules().reason(changed(**values)) is None


@pytest.mark.parametrize("absent", [None, "high", math.nan])
def test_a_score_that_is_not_there_passes_but_not_that_of_safety(absent):
    seen = changed(similarity=absent, aesthetic=absent, pwatermark=absent, LANGUAGE=None)
    assert rules().reason(seen) is None
    assert rules().reason(changed(punsafe=absent)) == "unsafe"


def test_null_asks_nothing():
    open_ = rules(min_similarity=None, min_aesthetic=None, max_watermark=None, languages=None, safety=NoSafety())
    seen = changed(similarity=0.0, aesthetic=0.0, pwatermark=1.0, LANGUAGE="de", punsafe=1.0)
    assert open_.reason(seen) is None


def test_the_first_field_that_a_sample_has():
    seen = {**GOOD, "info": {"punsafe": 0, "clip_similarity_vitl14": 0.1}}
    assert rules().reason(seen) == "similarity"
    seen = {**GOOD, "info": {"punsafe": 0, "similarity": 0.3, "clip_similarity_vitl14": 0.1}}
    assert rules().reason(seen) is None
    seen = {**GOOD, "info": {"punsafe": 0, "stability_metadata": {"aes_scorelv2": 1.0}}}
    assert rules().reason(seen) == "aesthetic"


def test_a_blocklist_goes_before_all(tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text(f"# taken down\n\n{'AB' * 32}  # this one\n{'0123456789abcdef'}\n")
    blocked = rules(blocklist=read_blocklist(path))
    assert blocked.reason(changed(sha256=b"\xab" * 32)) == "blocklist"
    assert blocked.reason(changed(phash=bytes.fromhex("0123456789abcdef"), punsafe=1.0)) == "blocklist"
    assert blocked.reason(changed(sha256=b"\xab" * 32, fault="animated", phash=None)) == "blocklist"
    assert blocked.reason(GOOD) is None
    assert blocked.recipe() != rules().recipe()


@pytest.mark.parametrize("line", ["abc", "g" * 16, "0" * 63])
def test_a_line_that_is_no_hash_is_named(tmp_path, line):
    path = tmp_path / "blocked.txt"
    path.write_text(f"{'0' * 16}\n{line}\n")
    with pytest.raises(UserError, match=r"on line 2 .* no hash"):
        read_blocklist(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_blocklist(tmp_path / "none.txt")


def test_the_recipe_tells_any_change():
    recipes = [
        rules().recipe(),
        rules(min_size=64).recipe(),
        rules(safety=NoSafety()).recipe(),
        rules(safety=MaxScore(field="punsafe", threshold=0.2)).recipe(),
        rules(languages=["en"]).recipe(),
        rules(fields=FIELDS | {"language": ["lang"]}).recipe(),
    ]
    assert all(one not in recipes[:i] for i, one in enumerate(recipes))
