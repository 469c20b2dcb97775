"""Loss on held-out pictures: known errors, and stages that are paired whatever their schedule or batches."""

import pytest
import torch
from pictures import random_pictures

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.metric.base import Subject
from imagen.metric.heldout_loss import HeldoutLoss
from imagen.metric.pictures import InMemory, PictureSet

EDGES = [-8.0, -2.0, 2.0, 8.0]
LAST = "heldout_loss_logsnr_2_to_8"


def stage_of(*overrides):
    cfg = compose("train", ["experiment=toy", "text_encoder=hash", *overrides])
    return build.build_module(cfg).stage, build.build_encoder(cfg)


@pytest.fixture(scope="module")
def toy():
    return stage_of()


def subject(stage, encoder, val=12):
    images = random_pictures(16, stage.resolution)
    captions = [f"a {i}" for i in range(16)]
    split = {"val": InMemory(images[:val], captions[:val])}  # what was trained on is not asked for
    own = PictureSet(split.__getitem__, encoder, encoder)
    return Subject(split["val"], split["val"], lambda: own, {}, lambda: stage)


def measured(stage, encoder, **changed):
    asked = {"edges": EDGES, "draws": 2, "augmentation_level": 0.0, "batch_size": 5, "seed": 0}
    metric = HeldoutLoss(**(asked | changed))
    return metric, metric.measure(subject(stage, encoder))


def test_a_network_that_says_nothing_errs_by_all_of_epsilon(toy):
    metric, figures = measured(*saying_zero(*stage_of("parameterization=epsilon")))
    values = metric.values()
    assert figures["heldout_loss"] == pytest.approx(1.0, abs=0.05)  # the mean square of normal noise
    assert metric.counts()["heldout_loss"] == len(values["heldout_loss"]) == 24
    inside = [count for name, count in metric.counts().items() if name != "heldout_loss"]
    assert inside == pytest.approx([9, 6, 9], abs=1)  # even in log-SNR, stratum by stratum
    assert sum(inside) == 24


def saying_zero(stage, encoder):
    """A stage whose network puts out nothing but zeros, so that its error is its target's."""
    with torch.no_grad():
        for parameter in stage.denoiser.network.parameters():
            parameter.zero_()
    return stage, encoder


def test_stages_are_paired_picture_by_picture_whatever_batches_schedule_and_target(toy):
    encoder = toy[1]
    epsilon = measured(*saying_zero(*stage_of("parameterization=epsilon")))[0].values()["heldout_loss"]
    shifted = ["parameterization=epsilon", "schedule=shifted_cosine"]
    for overrides, changed in (([*shifted], {}), (["parameterization=epsilon"], {"batch_size": 12})):
        stage = saying_zero(*stage_of(*overrides))[0]
        values = measured(stage, encoder, **changed)[0].values()["heldout_loss"]
        both = ~values.isnan() & ~epsilon.isnan()
        assert both.sum() > 12
        torch.testing.assert_close(values[both], epsilon[both])
    other = measured(*saying_zero(*stage_of("parameterization=epsilon")), seed=1)[0].values()["heldout_loss"]
    assert not torch.allclose(other, epsilon)


def test_levels_that_a_stage_never_saw_are_left_out(toy):
    stage, encoder = toy

    metric, figures = measured(stage_of("schedule.logsnr_max=2.0")[0], encoder)
    assert LAST not in figures
    assert metric.counts()[LAST] == 0
    assert metric.values()["heldout_loss"].isnan().sum() == pytest.approx(9, abs=1)
    assert measured(stage, encoder)[0].counts()[LAST] > 0


def test_a_super_resolution_stage_is_given_its_picture_the_same_however_it_was_trained(monkeypatch):
    told = []
    for trained in ("gaussian", "none"):
        stage, encoder = stage_of("experiment=toy_sr32", f"conditioning_augmentation={trained}")
        output = stage.denoiser.output
        monkeypatch.setattr(stage.denoiser, "output", lambda x, s, c, o=output: (told.append((c, s, x)), o(x, s, c))[1])
        for level in (0.0, 0.5):
            metric, figures = measured(stage, encoder, draws=1, batch_size=12, augmentation_level=level)
            assert figures["heldout_loss"] > 0
            assert metric.provenance()["augmentation_level"] == level
    clean, noisy, bare, _ = (cond for cond, _, _ in told)
    torch.testing.assert_close(clean.low_res, bare.low_res, atol=1e-2, rtol=0)  # at 0 the two are the same task
    torch.testing.assert_close(clean.low_res_logsnr, bare.low_res_logsnr)
    assert (noisy.low_res - clean.low_res).square().mean() > 0.1
    assert (noisy.low_res_logsnr < clean.low_res_logsnr).all()


def test_a_network_that_diverged_has_no_finite_loss():
    stage, encoder = stage_of()
    with torch.no_grad():
        next(stage.denoiser.network.parameters()).fill_(torch.nan)
    metric, figures = measured(stage, encoder)
    assert figures["heldout_loss"] == float("inf")
    assert metric.directions()["heldout_loss"] == "lower"


def test_edges_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"edges=.* must be at least two increasing"):
        HeldoutLoss(edges=[1.0, 0.0], draws=1, augmentation_level=0.0, batch_size=1, seed=0)
