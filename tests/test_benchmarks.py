"""The benchmarks run on a toy and write what docs/performance.md is drawn from. How fast anything is, no test says."""

import ast
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from imagen.cli import compose
from imagen.summary import summarize

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
CPU = torch.device("cpu")

Run = Callable[..., str]
"""Runs a benchmark with arguments, in this process; what it printed."""


@pytest.fixture
def bench(monkeypatch) -> Iterator[Callable[[str], Any]]:
    """A module of benchmarks/ by its name; what they set of torch is set back."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before, precision, threads = set(sys.modules), torch.get_float32_matmul_precision(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield __import__
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)
    for name in {path.stem for path in BENCHMARKS.glob("*.py")} & set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def run(bench, monkeypatch, capsys) -> Run:
    def call(script: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [str(BENCHMARKS / script), *arguments])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_importing_loads_no_package_that_only_some_need():
    for module, absent in (("imagen", {"torch"}), ("imagen.build", {"lightning"})):
        program = f"import sys, {module}; print(*sys.modules)"
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert not set(out.split()) & ({"transformers", "wandb"} | absent)


def test_operations_are_told_apart(bench):
    kind_of = bench("kinds").kind_of
    assert kind_of(["aten::mkldnn_convolution", "aten::conv2d"]) == "convolution"
    assert kind_of(["aten::bmm", "_GroupNormCPUBackward"]) == "norm"
    assert kind_of(["aten::bmm"]) == "attention"
    assert kind_of(["aten::addmm", "aten::linear"]) == "matmul"
    assert kind_of(["aten::copy_", "aten::conv2d"]) == "copy and cast"
    assert kind_of(["aten::normal_"]) == "pointwise"
    assert kind_of(["triton_red_fused_native_group_norm_silu_3"]) == "norm"
    assert kind_of(["triton_poi_fused_add_mul_1"]) == "pointwise"
    assert kind_of(["aten::linalg_vector_norm", "clip"]) == "optimizer"
    assert kind_of(["aten::_foreach_lerp_", "EMA"]) == "EMA"
    assert kind_of(["aten::embedding"]) == "other"
    assert set(bench("figure").COLOURS) == set(bench("kinds").KINDS)


def test_the_profiler_tells_what_a_call_is_made_of(bench):
    x, weight = torch.ones(1, 3, 64, 64), torch.ones(8, 3, 3, 3)

    def call() -> None:
        y = torch.nn.functional.conv2d(x, weight)
        with record_function("EMA"):
            y.mul_(2)

    found = bench("kinds").milliseconds_by_kind(call, CPU)
    assert found["convolution"] > 0
    assert found["EMA"] > 0
    assert "pointwise" not in found  # it was part of the average


def test_an_entry_takes_the_place_of_its_older_self_alone(bench, tmp_path):
    record = bench("common").record
    for case, value in (("b", 1), ("a", 2), ("b", 3)):
        path = record("train_step", case, {"value": value}, CPU, tmp_path)
    record("sample", "a", {"value": 4}, CPU, tmp_path)
    content = json.loads(path.read_text())
    assert content["kind"] == "cpu"
    found = {name: {case: e["value"] for case, e in cases.items()} for name, cases in content["benchmarks"].items()}
    assert found == {"sample": {"a": 4}, "train_step": {"a": 2, "b": 3}}
    assert content["benchmarks"]["sample"]["a"]["torch"] == torch.__version__


def test_a_training_step_of_the_toy(run):
    figures = json.loads(run("train_step.py", "--presets", "toy_sr32", "--rounds", "2", "--here"))
    assert figures["batch_size"] == 8
    assert figures["ms_low"] <= figures["ms"] <= figures["ms_high"]
    assert figures["images_per_s"] == pytest.approx(8000 / figures["ms"], rel=0.01)
    assert figures["memory_mib"] > 100
    assert {"convolution", "norm", "optimizer", "EMA", "matmul"} <= set(figures["ms_by_kind"])


def test_figures_are_recorded_with_their_share_of_the_ceiling(bench, run, monkeypatch, tmp_path):
    monkeypatch.setattr(bench("presets"), "in_a_process", lambda script, arguments: {"tflops_per_s": 0.01})
    run("train_step.py", "--presets", "toy", "--threads", "1", "--case", "mine", "--results", str(tmp_path))
    (path,) = tmp_path.glob("*.json")
    figures = json.loads(path.read_text())["benchmarks"]["train_step"]["mine"]
    assert figures["threads"] == 1
    assert figures["utilisation"] == pytest.approx(0.01 / figures["ceiling_tflops"], rel=0.01)


def test_a_sampling_step_counts_both_halves_of_guidance(run):
    figures = json.loads(run("sample.py", "--presets", "toy", "--rounds", "1", "--steps", "3", "--here"))
    forward = summarize(compose("train", ["experiment=toy"]))["forward_flops"]
    assert figures["tflops_per_s"] * figures["ms"] == pytest.approx(2 * forward / 1e9, rel=0.01)
    assert figures["steps"] == 8
    assert figures["images_per_s"] == pytest.approx(1000 / figures["ms"] / 8, rel=0.01)


def test_the_averages_share_of_the_toys_step(run):
    figures = json.loads(run("ema.py", "--presets", "toy", "--rounds", "2", "--here"))
    assert 0 < figures["share_low"] <= figures["share"] <= figures["share_high"] < 1
    assert figures["ema_ms"] < figures["step_ms"]


def test_the_norms_of_a_preset_are_measured_at_its_shapes(bench, monkeypatch):
    norm = bench("norm")
    assert norm.shapes("toy", 1) == [(16, 16, 16)]
    monkeypatch.setattr("torch.nn.Module.compile", lambda module, **options: None)  # types are checked here
    monkeypatch.setattr("torch.compiler.reset", lambda: None)
    figures = norm.measure((8, 4, 4), 2, CPU, 2, rate=1e9)
    assert figures["eager_gb_per_s"] == pytest.approx(5 * 2 * 2 * 8 * 16 / 1e6 / figures["eager_ms"], rel=0.01)
    assert figures["eager_share"] == pytest.approx(figures["eager_gb_per_s"], rel=0.01)
    assert figures["compiled_ms_low"] <= figures["compiled_ms"] <= figures["compiled_ms_high"]
    assert "triton_ms" not in figures
    rates = {"batch_size": 2, "copy_gb_per_s": 1.0, **figures}
    cells = [column(rates) for _, column in bench("draw").TABLES["norm"][1]]
    assert cells[-1] == "unmeasured"


def test_what_cannot_run_is_recorded_with_why(run, tmp_path):
    run("train_step.py", "--presets", "toy", "--limit-s", "0", "--results", str(tmp_path))
    (path,) = tmp_path.glob("*.json")
    assert "cannot be done within 0 s" in json.loads(path.read_text())["benchmarks"]["train_step"]["toy"]["not_run"]
    program = tmp_path / "fails.py"
    program.write_text("raise MemoryError('too large')")
    assert "MemoryError: too large" in sys.modules["common"].in_a_process(str(program), [])["not_run"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train_step.py", "--presets", "toy", "demo_base61"], "experiment=demo_base61 is not an option of experiment"),
        (["train_step.py", "--roudns", "3"], "--roudns is not an option: the nearest is --rounds"),
        (["sample.py", "--presets", "toy", "--overrides", "smapler=ddim"], "the nearest keys are sampler"),
        (["ema.py", "--presets", "toy", "toy_sr32", "--case", "mine"], "--case=mine names one entry"),
        (["peers.py", "--sizes", "sr265"], "sr265 is not known: the nearest is sr256"),
        (["startup.py", "--waits", "--compile", "toi"], "the nearest is toy"),
        (["embed_text.py", "--rounds", "0"], "0 must be a whole number of at least 1"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_anything_is_measured(run, capsys, tmp_path, words, said):
    with pytest.raises(SystemExit) as ended:
        run(*words, "--results", str(tmp_path))
    told = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert told.startswith("error: ")
    assert said in told
    assert told.count("\n") <= 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script", sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())
)
def test_every_script_says_what_it_measures(run, capsys, script):
    with pytest.raises(SystemExit) as ended:
        run(script, "--help")
    assert not ended.value.code
    about = ast.get_docstring(ast.parse((BENCHMARKS / script).read_text(encoding="utf-8")))
    assert about is not None
    assert about in capsys.readouterr().out
    assert script == "peers_worker.py" or f"benchmarks/{script}`" in README or f"benchmarks/{script} " in README


def test_waiting_is_timed(run, tmp_path):
    run("startup.py", "--waits", "import imagen", "--rounds", "2", "--results", str(tmp_path))
    (path,) = tmp_path.glob("*.json")
    figures = json.loads(path.read_text())["benchmarks"]["startup"]["import imagen"]
    assert 0 < figures["s_low"] <= figures["s"] <= figures["s_high"]
    assert figures["cpu_s"] > 0


@pytest.mark.drill
def test_the_rest_runs_too_and_is_drawn(bench, run, tmp_path):
    where = ["--results", str(tmp_path)]
    run("startup.py", "--waits", "train.py --help", "the first step of the toy", "--rounds", "1", *where)
    run("loader.py", "--workers", "1", "--size", "64", "--batches", "4", "--rounds", "1", *where)
    run("train_step.py", "--presets", "toy", "--rounds", "1", "--graph-breaks", *where)
    run("embed_text.py", "--captions", "64", "--rounds", "1", *where)
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())["benchmarks"]
    assert found["startup"]["the first step of the toy"]["s"] > 0
    assert found["train_step"]["toy"]["graph_breaks"] == 0
    assert found["train_step"]["toy"]["utilisation"] > 0
    assert found["loader"]["64 px"]["ratio"] > 0
    page = bench("draw").page(bench("draw").read(tmp_path))
    assert all(f"\n| `{case}` |" in page for case in ("64 px", "minilm, int8", "toy", "train.py --help"))


def test_the_page_is_what_the_results_say(bench):
    draw = bench("draw")
    files = draw.read(draw.RESULTS)
    assert draw.PAGE.read_text(encoding="utf-8") == draw.page(files), "python benchmarks/draw.py draws it anew"
    assert draw.FIGURE.read_text(encoding="utf-8") == draw.bars(draw.shares(files))


def test_a_gpus_figures_would_meet_their_targets_in_words(bench):
    draw = bench("draw")
    assert draw.page([]).count("| unmeasured |") == len(draw.TARGETS)
    step = {"batch_size": 32, "images_per_s": 800.0, "ms": 40.0, "ms_low": 39.0, "ms_high": 41.0, "memory_mib": 2048}
    step |= {"tflops_per_s": 500.0, "utilisation": 0.505, "ms_by_kind": {"convolution": 30.0, "norm": 10.0}}
    how = {"date": "2030-01-01", "torch": "3.0", "threads": 8}
    cases = {"imagen_base64_300m compiled": {**how, **step}, "imagen_base64": {**how, "not_run": "no room"}}
    page = draw.page([{"device": "NVIDIA H200", "kind": "cuda", "benchmarks": {"train_step": cases}}])
    assert "| 300M base at 64×64 | 45% | 50.5% (imagen_base64_300m compiled, NVIDIA H200) |" in page
    assert page.count("| unmeasured |") == len(draw.TARGETS) - 1
    assert "| `imagen_base64_300m compiled` | 32 | 800 | 40 (39 to 41) | 500 | 50% | 2.0 |  | 2030-01-01" in page
    assert "- `imagen_base64` was not run: no room" in page
    assert "75%" in draw.bars({"a step": step["ms_by_kind"]})
