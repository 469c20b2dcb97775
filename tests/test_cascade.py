import re

import pytest
import torch

from imagen import build
from imagen.cascade import Cascade, Stage
from imagen.cli import compose
from imagen.denoiser import Denoiser
from imagen.errors import UserError


def make_stage(experiment: str, *overrides: str) -> Stage:
    """A stage with small random weights everywhere, the zero-initialised ones too."""
    cfg = compose("train", [f"experiment={experiment}", *overrides])
    network = build.build_network(cfg)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return build.build_stage(cfg, Denoiser(network.eval(), build.instantiate(cfg.parameterization)), experiment)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    encoder = build.build_encoder(compose("train", ["experiment=toy"]))
    return Cascade([make_stage("toy", "sampler=ddpm", "sampler.num_steps=4"), make_stage("toy_sr32")], encoder)


def test_shapes_are_prompts_by_samples_at_every_stage(cascade):
    samples = cascade.sample(["a red circle", "a blue square", "x"], num_samples=2, progress=False)
    assert [tuple(stage.shape) for stage in samples.by_stage] == [(3, 2, 3, 16, 16), (3, 2, 3, 32, 32)]
    assert samples.final.dtype == torch.uint8
    assert not torch.equal(samples.final[0, 0], samples.final[0, 1])


def test_same_seed_same_batch_same_picture_bit_for_bit(cascade):
    one, two = (cascade.sample(["a red circle", "x"], seed=7, progress=False).final for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, cascade.sample(["a red circle", "x"], seed=8, progress=False).final)


def test_alone_or_among_others_a_sample_is_the_same_up_to_rounding(cascade):
    among = cascade.sample(["a", "two three", "a red circle"], num_samples=2, seed=7, progress=False)
    alone = cascade.sample(["a red circle"], num_samples=1, seed=7, batch_size=1, progress=False)
    for many, one in zip(among.by_stage, alone.by_stage, strict=True):
        assert (many[2, 0].int() - one[0, 0].int()).abs().max() <= 1


def test_augmentation_noise_is_the_same_for_every_step_and_both_halves_of_guidance():
    stage = make_stage("toy_sr32", "guidance.weight=3.0", "augmentation_level=0.5")
    seen = []
    forward = stage.denoiser.network.forward
    stage.denoiser.network.forward = lambda x, logsnr, cond: seen.append(cond) or forward(x, logsnr, cond)
    encoder = build.build_encoder(compose("train", ["experiment=toy"]))
    low_res = torch.zeros(1, 3, 16, 16)
    stage.sample(encoder.encode(["a dog"]), low_res, [torch.Generator().manual_seed(0)])
    assert len(seen) == 8
    assert all(torch.equal(cond.low_res[row], seen[0].low_res[0]) for cond in seen for row in range(2))
    assert seen[0].low_res.std() > 0.3
    text = seen[0].text
    assert text.absent.tolist() == [False, True]
    assert torch.equal(text.mask[0], text.mask[1])


def test_stages_that_do_not_chain_are_refused(cascade):
    base, sr = cascade.stages
    for stages in ([sr, base], [sr], [base, base], []):
        with pytest.raises(UserError, match=r"chain|empty"):
            Cascade(stages, cascade.encoder)


@pytest.mark.parametrize("prompts", [[], "a dog"])
def test_an_empty_prompt_list_is_refused(cascade, prompts):
    with pytest.raises(UserError, match=re.escape(repr(prompts))):
        cascade.sample(prompts)
