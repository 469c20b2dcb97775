"""Ablations: every file composes and builds at every scale, says what it is, and becomes the multirun that it names."""

import functools
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from imagen import build
from imagen.ablation import study as study_file
from imagen.ablation import sweep
from imagen.ablation.asked import Asked
from imagen.ablation.study import Point, read_study, study_named
from imagen.build_check import check, check_text
from imagen.cli import CONF
from imagen.config_check import read_yaml
from imagen.errors import UserError
from imagen.report.contrast import contrasts_of

ABLATIONS = sorted(path.stem for path in (CONF / "ablation").glob("*.yaml"))
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
BOTH = list(itertools.product(ABLATIONS, SCALES))
IN_THE_PAPER = {
    *("encoder_size", "unet_size", "encoder_versus_unet", "threshold", "augmentation_level", "augmentation_training"),
    *("text_conditioning", "efficient_unet", "skip_scaling", "resampling_order", "text_layernorm", "sr_text"),
    *("optimizer", "optimizer_sr"),
}


OF_THE_NETWORK = ("seed", "network", "null_text", "text_pooling", "group_norm")


def test_all_of_the_papers_are_there():
    assert set(ABLATIONS) > IN_THE_PAPER


@pytest.mark.parametrize("name", ABLATIONS)
def test_its_header_says_what_it_is(name):
    text = (CONF / "ablation" / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\nfigure:")]
    assert all(line.startswith("# ") for line in head.splitlines())
    for part in ("# Claim: ", "# Axes: ", "# Fixed: ", "# Cost: demo ", "gpu ", "paper "):
        assert part in head
    assert re.search(rf"^# Command: python train.py -m ablation={name} scale=demo( seeds=3)?$", head, re.MULTILINE)


@functools.cache  # variants differ in what is no part of the network, too
def build_network(**parts: str) -> nn.Module:
    cfg = OmegaConf.create({key: json.loads(part) for key, part in parts.items()})
    with torch.device("meta"):
        return build.build_network(cfg)


def averaging(cfg):
    """The config with the decay that its average reaches, which warm-up bounds."""
    config = build.run_config(cfg)
    ema = config.pop("ema")
    if "warmup" in ema:
        ema["decay"] = min(ema["decay"], (1 + cfg.max_steps) / (ema["warmup"] + cfg.max_steps))
    return json.dumps([config, ema], sort_keys=True)


@pytest.mark.parametrize(("name", "scale"), BOTH)
def test_every_variant_composes_and_builds_on_the_meta_device(name, scale):
    study = read_study(name, scale)
    points = [study.point(variant, 0, ["data.root=data/mine"]) for variant in study.variants]
    assert len({point.run.path for point in points}) == len(points), "no two variants are the same training"
    assert len({averaging(point.cfg) for point in points}) == len(points), "nor become so by the average's warm-up"
    for point in points:
        check(point.cfg)
        build.sampling_parts(point.cfg)
        config = build.run_config(point.cfg)
        check_text(point.cfg, build_network(**{key: json.dumps(config[key]) for key in OF_THE_NETWORK}))
    for base in study.bases(points[0].cfg):
        assert base.cfg.resolution < points[0].cfg.resolution
    assert set(study.plot) == {"x", "y"}


@pytest.mark.parametrize(("name", "scale"), BOTH)
def test_its_verdicts_are_contrasts_of_its_own_variants_and_axes(name, scale):
    study = read_study(name, scale)
    assert set(study.verdict) == {"metric", "expected", "contrast"}
    for verdict in (study.verdict, *study.also):
        assert {"metric", "expected"} <= set(verdict) <= set(study.verdict)
        assert verdict["expected"] in ("positive", "negative", {"within": 0.02})
        for contrast in contrasts_of(study, verdict.get("contrast", study.verdict["contrast"])):
            assert contrast.of.keys() == contrast.less.keys(), "one thing is compared with another of its kind"
            assert contrast.of != contrast.less


def test_what_reads_text_is_all_that_the_arms_without_it_lack():
    for scale in SCALES:
        study = read_study("sr_text", scale)
        points = [study.point(variant, 0, ["data.root=data/mine"]) for variant in study.variants]
        networks = [build.run_config(point.cfg)["network"] for point in points]
        for network in networks:
            assert network | {"cross_attention": None} == networks[0] | {"cross_attention": None}
        assert [any(network["cross_attention"]) for network in networks] == [True, False, False]
        assert not any(networks[0]["self_attention"]), "it reads the text too"


def points_of(name: str, *arguments: str) -> list[Point]:
    return Asked.of([f"ablation={name}", "scale=demo", *arguments]).points()


def test_a_study_is_a_multirun_over_variants_and_seeds(tmp_path):
    points = points_of("text_conditioning", "variant=mean_pooling,cross_attention", "seeds=2", f"output_dir={tmp_path}")
    assert [point.name for point in points] == [
        "mean_pooling-s0",
        "cross_attention-s0",
        "mean_pooling-s1",
        "cross_attention-s1",
    ]
    assert points[0].cfg.network.text_resolutions == []
    assert points[0].cfg.text_pooling["_target_"].endswith("MeanPooling")
    assert points[3].run.path.parent == tmp_path / "lab_base16"
    assert points[3].run.path.name.endswith("-s1")
    # the default training is one run, whichever ablation asks for it
    same = read_study("encoder_size", "demo").point("layers_6", 1, [f"output_dir={tmp_path}"])
    assert same.run == points[3].run
    assert same.evaluation != points[3].evaluation


def test_what_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"ablation=encodersize is not an option of ablation: there are .*encoder_size"):
        read_study("encodersize", "demo")
    with pytest.raises(UserError, match="scale=huge is not an option of scale: there are demo, gpu, paper"):
        read_study("encoder_size", "huge")
    with pytest.raises(UserError, match="sweep=encoder_size names no sweep: write <ablation>-<scale>"):
        study_named("encoder_size")
    with pytest.raises(UserError, match="variant=wide is none of ablation=unet_size: it has width_16"):
        points_of("unet_size", "variant=wide", "seed=0")
    with pytest.raises(UserError, match=r"optimizer\.lr=1e-3,1e-4 sweeps another key"):
        points_of("unet_size", "variant=width_16", "seed=0", "optimizer.lr=1e-3,1e-4")
    for wrong in ("0", "three", "-1"):
        with pytest.raises(UserError, match=f"seeds={wrong} must be a whole number"):
            points_of("unet_size", f"seeds={wrong}")
    for wrong in ("abc", "-1", "0.5", "null"):
        with pytest.raises(UserError, match=f"seed={wrong} must be a whole number of at least 0"):
            points_of("unet_size", f"seed=0,{wrong}")
    for twice in ("seed=0,0", "variant=width_16,width_16"):
        with pytest.raises(UserError, match=rf"{twice} names \w+ twice: give each once"):
            points_of("unet_size", twice)
    with pytest.raises(UserError, match="seeds=1000000 must be a whole number of 1 to 1000"):
        points_of("unet_size", "seeds=1000000")
    for own in ("experiment=toy", "sweep=unet_size-demo"):
        with pytest.raises(UserError, match=f"{own} does not go with ablation=unet_size, which has its own"):
            points_of("unet_size", own)


def test_a_command_line_is_read_in_one_way():
    said = ["-m", "ablation=unet_size", "scale=demo", "seeds=2", "variant=width_16", "finished=a.csv", "wandb=offline"]
    asked = Asked.of(said)
    assert (asked.study.name, asked.seeds, asked.flags) == ("unet_size", 2, ["-m"])
    assert asked.overrides() == ["experiment=lab_base16", "seed=0,1", *said[4:]], "which the sweep hands to Hydra"
    asked = Asked.of(said, ["finished", "wandb"])
    assert (asked.finished, asked.wandb, asked.own) == (Path("a.csv"), "offline", ["variant=width_16"])
    assert asked.again() == said[1:4]
    unsaid = [one for one in said if one != "scale=demo"]
    assert Asked.of(unsaid, ["finished", "wandb"]) == asked, "of which scale=demo is part, said or not"
    with pytest.raises(UserError, match="are of an ablation"):
        Asked.of(said[2:])
    with pytest.raises(UserError, match="ablation= is missing: give one"):
        Asked.of(["-m"])


def test_what_is_measured_otherwise_lies_in_another_folder(tmp_path):
    study = read_study("encoder_size", "demo")

    def folder(*measure: str) -> str:
        return study.point("layers_6", 0, [f"output_dir={tmp_path}", f"measure={json.dumps(measure)}"]).evaluation.name

    assert folder() == folder("device=cpu") == folder(study.measure[0]) == "encoder_size-demo"
    other = folder("num_measured=8", "base_batch_size=4")
    assert re.fullmatch("encoder_size-demo-[0-9a-f]{8}", other)
    assert folder("base_batch_size=4", "num_measured=8") == other
    assert folder("num_measured=9") != other


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """A file of one's own in ``conf/ablation``: unet_size with a change, whose keys are given with dots."""

    def write(changes):
        said = read_yaml(CONF / "ablation" / "unet_size.yaml")
        for key, value in changes.items():
            *parents, last = key.split(".")
            node = functools.reduce(lambda inner, name: inner[name], parents, said)
            if value == "left out":
                del node[last]
            else:
                node[last] = value
        (tmp_path / "ablation" / "mine.yaml").write_text(yaml.safe_dump(said, sort_keys=False))

    (tmp_path / "ablation").mkdir()
    (tmp_path / "scale").symlink_to(CONF / "scale")
    monkeypatch.setattr(study_file, "CONF", tmp_path)
    return write


CONTRAST = {"of": {"variant": "width_40"}, "less": {"variant": "width_16"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"claim": "left out"}, "claim is missing: it takes text or a group of keys"),
        ({"claim": {"gpu": "one"}}, "claim: demo is missing: it takes text"),
        ({"stage": "bse"}, "stage=bse is none of scale=demo: the nearest is base; there are base, sr1"),
        ({"scales": {}}, "scales is none of its keys: there are figure, claim, stage, demo, gpu, paper"),
        ({"demo": "left out"}, "has no scale=demo: it has gpu, paper"),
        ({"demo.axis": {}}, "demo: axis is none of its keys: the nearest is axes; there are variants, axes, measure"),
        ({"demo.axes": {"base.guidance.weight": 2}}, "demo.axes: base.guidance.weight=2 must be a list"),
        ({"demo.variants.wide": None}, "demo.variants: wide=null must be a group of keys"),
        ({"demo.variants": {16: {}}}, "demo.variants: 16 must be text: call it size_16, say"),
        ({"demo.variants": {"a b": {}}}, "demo.variants: 'a b' is no name for a command line: take letters"),
        ({"demo.variants": {"a": {"seed": 4}}}, "demo.variants.a: seed is the sweep's own to set: leave it out"),
        ({"demo.variants": {"a": {}, "b": {}}}, "demo.variants: a and b set the same, and would be one training"),
        ({"demo.verdict.contrast": [{**CONTRAST, "less": CONTRAST["of"]}]}, "of and less are the same, {'variant'"),
        ({"demo.measure": "depth=2"}, "demo: measure=depth=2 must be a list, each entry text or null"),
        ({"demo.plot": {"x": "fid"}}, "demo.plot: y is missing: it takes text"),
        ({"demo.plot": {"x": "fid", "y": "fid", "z": "kid"}}, "demo.plot: z is none of its keys: there are x, y"),
        ({"demo.verdict": "left out"}, "demo: verdict is missing: it takes a group of keys"),
        ({"demo.verdict.metric": "left out"}, "demo.verdict: metric is missing: it takes text"),
        ({"demo.verdict.contrasts": []}, "demo.verdict: contrasts is none of its keys: the nearest is contrast"),
        ({"demo.also": [{"expected": "positive"}]}, "demo.also: metric is missing"),
        ({"demo.also": [{"metric": "fid", "expects": "positive"}]}, "demo.also: expects .* the nearest is expected"),
        ({"demo.verdict.expected": "up"}, "on fd_pixel: expected=up must be positive, negative or {within: SHARE}"),
        ({"demo.verdict.expected": {"within": 2}}, "must be positive, negative or"),
        ({"demo.verdict.contrast": []}, "contrast is empty"),
        ({"demo.verdict.contrast": [{"of": {"variant": "width_16"}}]}, "contrast: less is missing"),
        (
            {"demo.verdict.contrast": [{**CONTRAST, "less": {"variant": "w"}}]},
            "variant=w is not .* there are width",
        ),
        ({"demo.verdict.contrast": [{**CONTRAST, "of": {"wind": 1}}]}, "wind is neither .*: there are variant, base"),
        ({"demo.verdict.contrast": [{**CONTRAST, "at": "wind"}]}, "at=wind is none of its axes of sampling: there are"),
        ({"demo.also": [{"metric": "fid", "expected": "positive", "contrast": []}]}, "on fid: contrast is empty"),
    ],
)
def test_a_file_of_ones_own_is_refused_by_its_key(own_file, changes, said):
    own_file(changes)
    with pytest.raises(UserError, match=rf"^conf/ablation/mine\.yaml.*{said}"):
        read_study("mine", "demo")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prepares": []}, "prepares is none of its keys: the nearest is prepare"),
        ({"stages": {"base": None}}, "stages: base=null must be a group of keys"),
        ({"stages": {"base": {"experiment": "toy", "measure": []}}}, "stages.base: plot is missing: it takes"),
        ({"stages": {"base": {"experiment": "toy", "measure": [], "plot": {"x": "fid"}}}}, "base.plot: y is missing"),
    ],
)
def test_a_scale_of_ones_own_is_refused_by_its_key(tmp_path, monkeypatch, changes, said):
    (tmp_path / "ablation").symlink_to(CONF / "ablation")
    (tmp_path / "scale").mkdir()
    own = {**read_yaml(CONF / "scale" / "demo.yaml"), **changes}
    (tmp_path / "scale" / "mine.yaml").write_text(yaml.safe_dump(own))
    monkeypatch.setattr(study_file, "CONF", tmp_path)
    with pytest.raises(UserError, match=rf"^conf/scale/mine\.yaml.*{said}"):
        read_study("unet_size", "mine")


def test_what_a_file_of_ones_own_leaves_out_or_empty_is_the_scales(own_file):
    own_file({"demo.also": None, "demo.plot": None, "demo.measure": ["depth=1"]})
    study = read_study("mine", "demo")
    assert (study.also, study.plot) == ([], {"x": "retrieval_top10", "y": "fd_pixel"})
    assert study.measure[-1] == "depth=1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"demo.axes": {"base.guidance.wieght": [1, 2]}}, "axes: base.guidance.wieght is no key of these stages"),
        ({"demo.axes": {"base.sampler": ["ddmp"]}}, "base.sampler=ddmp is not an option of sampler; there are"),
        ({"demo.measure": ["metric=[fidd]"]}, "metric=fidd is not an option of metric: the nearest is fid"),
        ({"demo.measure": ["num_measurd=8"]}, "unknown config key 'num_measurd': the nearest keys are num_measured"),
        ({"demo.measure": ["num_measured=few"]}, "num_measured=few must be a whole number"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(own_file, tmp_path, monkeypatch, changes, said):
    own_file({**changes, "demo.verdict.contrast": [CONTRAST]})
    refused_before_it_is_prepared(monkeypatch, said, "ablation=mine", f"output_dir={tmp_path}")


def test_so_is_what_the_command_line_measures(tmp_path, monkeypatch):
    said = "unknown config key 'dept': the nearest keys are depth"
    refused_before_it_is_prepared(
        monkeypatch, said, "ablation=unet_size", f"output_dir={tmp_path}", 'measure=["dept=1"]'
    )


@pytest.mark.parametrize(
    "own", ["axes={base.guidance.weight: [1]}", "base_weights=[1]", "output_dir=elsewhere", "stages=[x]"]
)
def test_what_is_the_sweeps_own_is_not_measured_otherwise(tmp_path, monkeypatch, own):
    said = rf"measure={re.escape(own)} is the sweep's own to set: leave it out"
    refused_before_it_is_prepared(
        monkeypatch, said, "ablation=unet_size", f"output_dir={tmp_path}", f"measure=['{own}']"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer.lrr": 1}, "variant=width_16: the optimizer refuses its settings: .*lrr"),
        ({"optimizer.lr": "high"}, "variant=width_16: optimizer.lr=high must be a number"),
        ({"low_resolution": 5}, "variant=width_16: low_resolution=5 must divide"),
    ],
)
def test_a_variant_that_could_not_be_trained_is_refused_by_its_name(own_file, tmp_path, monkeypatch, settings, said):
    own_file({"demo.variants.width_16": settings})
    refused_before_it_is_prepared(monkeypatch, said, "ablation=mine", f"output_dir={tmp_path}")


def refused_before_it_is_prepared(monkeypatch, said, *arguments):
    monkeypatch.setattr(sweep, "prepare", lambda *_: pytest.fail("something was prepared"))
    asked = ["-m", *arguments, "scale=demo", "variant=width_16"]
    with pytest.raises(UserError, match=said), sweep.as_multirun(asked):
        pass
