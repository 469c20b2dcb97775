"""A point's row: figures by kind, metrics that fail, what is kept and what is measured once."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pictures import of_one_colour

from imagen.errors import UserError
from imagen.evaluation import rows
from imagen.evaluation.gallery import Gallery
from imagen.evaluation.points import Point
from imagen.evaluation.rows import Measuring
from imagen.metric.base import Metric, Subject
from imagen.metric.pictures import InMemory


class Half(Metric):
    """Red over 200 of each picture, but of the last none; ``of_sampling`` False: counted over all calls."""

    by_prompt = True
    data = "a"

    def __init__(self, *, most: int):
        self.most = most

    def measure(self, subject):
        Half.calls += 1
        if len(subject.drawn) > self.most:
            raise UserError(f"half takes {self.most} pictures at most")
        (whole,) = subject.drawn.batches(100)
        self.red = torch.where(torch.arange(len(whole)) < len(whole) - 1, whole[:, 0, 0, 0] / 200, torch.nan)
        return {"half": self.red.nanmean().item()}

    def values(self):
        return {"half": self.red}

    def directions(self):
        return {"half": "higher"}

    def depends(self, subject):
        return {"data": Half.data}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measures a gallery of five pictures with metrics that are called ``half`` and ``few``."""
    Half.calls = 0
    monkeypatch.setattr(rows, "build", SimpleNamespace(instantiate=lambda node: Half(most=node.most)))
    own = Gallery(tmp_path / "g", [str(i) for i in range(5)], [4], {"slots": {}}, 1, 4, 7)
    drawn = InMemory(of_one_colour(5), [str(i) for i in range(5)])
    missing = lambda: pytest.fail("is not to be asked for")  # noqa: E731
    subject = Subject(drawn, InMemory(of_one_colour(3), [""] * 3), missing, {}, missing)

    def measure(kinds, few=3, measuring=None):
        metric = OmegaConf.create({"metric": {"half": {"most": 9}, "few": {"most": few}}})
        point = Point({}, metric)
        measuring = measuring or Measuring(torch.device("cpu"), kinds)
        return measuring.row(point, tmp_path, [own], subject, {"base": {}})

    return measure


def test_a_figure_is_told_by_kind_and_a_metric_that_fails_stops_no_other(measured, tmp_path):
    row = measured(["b", "a", "b", "a", "a"])
    assert row["metrics"] == {"half": pytest.approx(1.5 / 200)}
    assert row["n"] == {"half": 4}
    assert row["directions"] == {"half": "higher"}
    assert row["kinds"] == {
        "a": {"half": {"value": pytest.approx(2 / 200), "n": 2}},
        "b": {"half": {"value": pytest.approx(1 / 200), "n": 2}},
    }
    assert row["skipped"] == {"few": "half takes 3 pictures at most"}
    with np.load(tmp_path / "values.npz") as values:
        assert values["half"].tolist() == pytest.approx([0, 1 / 200, 2 / 200, 3 / 200, np.nan], nan_ok=True)


def test_a_metric_is_asked_once_unless_it_gave_no_figure_or_is_set_otherwise(measured):
    kinds = ["a"] * 5
    first = measured(kinds)
    assert Half.calls == 2
    assert measured(kinds) == first
    assert Half.calls == 3  # what lacked something may have it by now
    whole = measured(kinds, few=5)
    assert Half.calls == 4
    assert json.loads(json.dumps(whole)) == measured(kinds, few=5)
    assert Half.calls == 4
    assert measured([""] * 5, few=5)["kinds"] == {}
    assert Half.calls == 6


def test_a_metric_is_asked_again_where_the_data_it_depends_on_is_another(measured, monkeypatch):
    measured([], few=5)
    monkeypatch.setattr(Half, "data", "b")
    assert measured([], few=5)["depends"] == {"half": {"data": "b"}, "few": {"data": "b"}}
    assert Half.calls == 4


def test_a_figure_that_is_not_finite_is_left_out_and_said(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(Half, "measure", lambda self, subject: {"half": self._red(), "whole": float("inf")})
    monkeypatch.setattr(Half, "_red", lambda self: setattr(self, "red", torch.ones(5)) or 1.0, raising=False)
    row = measured(["a"] * 5, few=5)
    assert row["metrics"] == {"half": 1.0}
    assert row["skipped"] == {"half": "whole is inf", "few": "whole is inf"}
    assert json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail) == row


def test_what_does_not_depend_on_sampling_is_measured_once_for_all_points(measured, monkeypatch):
    monkeypatch.setattr(Half, "of_sampling", False)
    measuring = Measuring(torch.device("cpu"), [""] * 5)
    for few in (7, 8):
        assert measured([], few=few, measuring=measuring)["metrics"]["half"] == pytest.approx(1.5 / 200)
    assert Half.calls == 3  # half at most 9 once, of 7 and of 8


@pytest.mark.parametrize("name", ["metrics.json", "values.npz"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_damaged_is_measured_again(measured, tmp_path, name, share):
    first = measured([], few=5)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    assert measured([], few=5) == first
    assert Half.calls == 4
    assert measured([], few=5) == json.loads(json.dumps(first))
    assert Half.calls == 4


def test_killed_between_values_and_figures_all_is_measured_again(measured, monkeypatch, tmp_path):
    measured([], few=5)
    monkeypatch.setattr(Half, "data", "b")
    with monkeypatch.context() as killed:
        killed.setattr(rows, "write_json", Mock(side_effect=SystemExit))
        with pytest.raises(SystemExit):
            measured([], few=5)
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.setattr(Half, "data", "a")
    calls = Half.calls
    assert measured([], few=5)["metrics"].keys() == {"half"}
    assert Half.calls == calls + 2
