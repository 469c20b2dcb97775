"""Ablations: every file composes and builds at every scale, says what it is, and becomes the multirun that it names."""

import functools
import itertools
import json
import re

import pytest
import torch
from omegaconf import OmegaConf

from imagen import build
from imagen.ablation.study import Study, read_study
from imagen.ablation.sweep import asked_of, points_of, seeds_of
from imagen.build_check import check
from imagen.cli import CONF
from imagen.errors import UserError

ABLATIONS = sorted(path.stem for path in (CONF / "ablation").glob("*.yaml"))
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
BOTH = list(itertools.product(ABLATIONS, SCALES))
IN_THE_PAPER = {
    *("encoder_size", "unet_size", "encoder_versus_unet", "threshold", "augmentation_level", "augmentation_training"),
    *("text_conditioning", "efficient_unet", "skip_scaling", "resampling_order", "text_layernorm", "sr_text"),
    *("optimizer", "optimizer_sr"),
}


OF_THE_NETWORK = ("seed", "network", "null_text", "text_pooling", "group_norm")


def columns_of(study: Study) -> set[str]:
    return {"variant", "seed", *study.axes}


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
def build_network(**parts: str) -> None:
    cfg = OmegaConf.create({key: json.loads(part) for key, part in parts.items()})
    with torch.device("meta"):
        build.build_network(cfg)


@pytest.mark.parametrize(("name", "scale"), BOTH)
def test_every_variant_composes_and_builds_on_the_meta_device(name, scale):
    study = read_study(name, scale)
    points = [study.point(variant, 0, ["data.root=data/mine"]) for variant in study.variants]
    assert len({point.run.path for point in points}) == len(points), "no two variants are the same training"
    for point in points:
        check(point.cfg)
        build.sampling_parts(point.cfg)
        config = build.run_config(point.cfg)
        build_network(**{key: json.dumps(config[key]) for key in OF_THE_NETWORK})
    for base in study.bases(points[0].cfg):
        assert base.cfg.resolution < points[0].cfg.resolution
    assert set(study.plot) <= {"x", "y", "pareto"}


@pytest.mark.parametrize(("name", "scale"), BOTH)
def test_its_verdict_is_a_contrast_of_what_is_measured(name, scale):
    study = read_study(name, scale)
    verdict = study.verdict
    assert set(verdict) == {"metric", "expected", "contrast"}
    assert verdict["expected"] in ("positive", "negative")
    assert sum(term["times"] for term in verdict["contrast"]) == 0
    for term in verdict["contrast"]:
        assert set(term["of"]) <= columns_of(study)
        assert term["of"].get("variant", next(iter(study.variants))) in study.variants
        assert all(value in study.axes[key] for key, value in term["of"].items() if key in study.axes)


def test_a_study_is_a_multirun_over_variants_and_seeds(tmp_path):
    study = read_study("text_conditioning", "demo")
    points = points_of(study, ["variant=mean_pooling,cross_attention", "seed=0,1", f"output_dir={tmp_path}"])
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
    study = read_study("unet_size", "demo")
    with pytest.raises(UserError, match="variant=wide is none of ablation=unet_size: it has width_16"):
        points_of(study, ["variant=wide", "seed=0"])
    with pytest.raises(UserError, match=r"optimizer\.lr=1e-3,1e-4 sweeps another key"):
        points_of(study, ["variant=width_16", "seed=0", "optimizer.lr=1e-3,1e-4"])
    for wrong in ("0", "three", "-1"):
        with pytest.raises(UserError, match=f"seeds={wrong} must be a whole number"):
            seeds_of(asked_of(["ablation=unet_size", f"seeds={wrong}"]))
