"""conf/, src/ and tests/ are one tree: a choice has its name in all three, an option's keys are its constructor's."""

import inspect
import re
from pathlib import Path

import hydra.utils
import pytest
from omegaconf import OmegaConf

import imagen
from imagen.cli import CONF
from imagen.targets import ALLOWED_TARGETS, CHOICES

PACKAGE = Path(imagen.__file__).parent
TESTS = Path(__file__).parent
THIRD_PARTY = ["logger", "lr_scheduler", "optimizer", "trainer"]
NO_OBJECTS = ["ablation", "data_prep", "experiment", "hydra", "sampling", "scale"]
OPTIONS = sorted(path for choice in CHOICES for path in (CONF / choice).glob("*.yaml"))


def test_every_folder_of_conf_is_known():
    assert {path.name for path in CONF.iterdir() if path.is_dir()} <= {*CHOICES, *THIRD_PARTY, *NO_OBJECTS}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_has_a_module_options_and_tests(choice):
    assert (PACKAGE / f"{choice}.py").is_file() or (PACKAGE / choice / "__init__.py").is_file()
    assert list((CONF / choice).glob("*.yaml"))
    assert list(TESTS.glob(f"test_{choice}*.py"))


def test_every_module_has_a_test():
    missing = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1].startswith("__"):
            continue
        names = ["_".join(parts), *(["_".join(parts[:-1])] if len(parts) > 1 else [])]
        if not any((TESTS / f"test_{name}.py").is_file() for name in names):
            missing.append("/".join(parts))
    assert not missing


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_option_is_its_class_and_all_its_hyperparameters(path):
    node = OmegaConf.load(path)
    text = path.read_text(encoding="utf-8")
    assert text.count("_target_:") == 1
    assert re.match(r"(# @package \S+\n)?# \S", text), "begins with a comment that says what it is"
    target = node["_target_"]
    assert target.startswith(f"imagen.{path.parent.name}.")
    constructor = inspect.signature(hydra.utils.get_class(target).__init__)
    keywords = {p.name: p for p in constructor.parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert set(node) - {"_target_"} == set(keywords)
    assert all(p.default is p.empty for p in keywords.values()), "a number lives in one yaml"


@pytest.mark.parametrize("folder", THIRD_PARTY)
def test_third_party_options_are_allowed_targets(folder):
    for path in (CONF / folder).glob("*.yaml"):
        node = OmegaConf.load(path)
        if "_target_" in node:
            assert node["_target_"].startswith(ALLOWED_TARGETS)


def test_experiments_make_no_objects():
    for path in (CONF / "experiment").glob("*.yaml"):
        assert "_target_" not in path.read_text(encoding="utf-8")
