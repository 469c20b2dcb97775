import pytest
import torch
from torch import nn

from imagen.conditioning_augmentation import GaussianAugmentation, NoAugmentation
from imagen.denoiser import Denoiser
from imagen.loss import DiffusionLoss
from imagen.parameterization import X0, Epsilon, V
from imagen.randomness import TrainingAddress
from imagen.schedule import CosineSchedule, alpha_sigma
from imagen.types import Batch, Conditioning, TextEmbedding
from imagen.weighting import MinSNR, Uniform

SCHEDULE = CosineSchedule(logsnr_min=-12.0, logsnr_max=12.0)


def make_batch(count: int = 8, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    text = TextEmbedding(torch.randn(count, 3, 4, generator=generator), torch.ones(count, 3, dtype=torch.bool))
    flips = torch.ones(count, dtype=torch.bool)
    return Batch(image, text, flips, [str(i) for i in range(count)], ["a dog"] * count)


def part(batch: Batch, rows: slice) -> Batch:
    text = TextEmbedding(batch.text.tokens[rows], batch.text.mask[rows])
    return Batch(batch.image[rows], text, batch.can_flip[rows], batch.key[rows], batch.caption[rows])


class Answers(nn.Module):
    """Gives the output that means ``x0 = 0.3 x_t`` in the parameterization at hand, and keeps what it was asked."""

    def __init__(self, parameterization) -> None:
        super().__init__()
        self.parameterization = parameterization

    def forward(self, x_t, logsnr, cond: Conditioning):
        self.seen = x_t, logsnr, cond
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        x0 = 0.3 * x_t
        return self.parameterization.target(x0, (x_t - alpha * x0) / sigma, logsnr)


def make_loss(weighting=None, augmentation=None, scale=None, caption_dropout=0.1) -> DiffusionLoss:
    weighting, augmentation = weighting or Uniform(), augmentation or NoAugmentation(SCHEDULE)
    return DiffusionLoss(SCHEDULE, weighting, augmentation, scale=scale, caption_dropout=caption_dropout)


def denoiser_of(parameterization=None) -> tuple[Denoiser, Answers]:
    parameterization = parameterization or Epsilon()
    network = Answers(parameterization)
    return Denoiser(network, parameterization), network


@pytest.mark.parametrize("weighting", [Uniform(), MinSNR(gamma=5.0)], ids=lambda w: type(w).__name__)
def test_the_parameterization_does_not_change_the_objective(weighting):
    address = TrainingAddress(0, 0, 0, 8, 8)
    losses = [
        make_loss(weighting)(denoiser_of(p)[0], make_batch(), address, training=True).per_example
        for p in (Epsilon(), V(), X0())
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-5, atol=0)


def test_uniform_weighting_is_plain_epsilon_mse():
    denoiser, network = denoiser_of()
    batch, address = make_batch(), TrainingAddress(0, 0, 0, 8, 8)
    loss = make_loss()(denoiser, batch, address, training=False)
    eps = address.normal("noise", (3, 8, 8))
    x_t, logsnr, _ = network.seen
    alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
    torch.testing.assert_close(loss.per_example, ((x_t - alpha * 0.3 * x_t) / sigma - eps).square().mean((1, 2, 3)))
    torch.testing.assert_close(loss.logsnr, SCHEDULE.logsnr(address.stratified("time")))


def test_two_processes_have_the_losses_of_one():
    denoiser, _ = denoiser_of()
    batch, loss = make_batch(), make_loss()
    whole = loss(denoiser, batch, TrainingAddress(5, 2, 0, 8, 8), training=True).per_example
    halves = [
        loss(denoiser, part(batch, slice(i, i + 4)), TrainingAddress(5, 2, i, 4, 8), training=True).per_example
        for i in (0, 4)
    ]
    assert torch.equal(whole, torch.cat(halves))


def test_captions_are_dropped_at_the_stated_rate_and_keep_their_mask():
    denoiser, network = denoiser_of()
    batch = make_batch(512, 2)
    make_loss(caption_dropout=0.1)(denoiser, batch, TrainingAddress(0, 0, 0, 512, 512), training=True)
    text = network.seen[2].text
    assert 25 <= text.absent.sum() <= 80
    assert torch.equal(text.mask, batch.text.mask)


def test_validation_neither_flips_nor_drops():
    denoiser, network = denoiser_of()
    batch = make_batch(64)
    loss = make_loss(caption_dropout=1.0)
    loss(denoiser, batch, TrainingAddress(0, 0, 0, 64, 64), training=False)
    assert not network.seen[2].text.absent.any()
    flipped = Batch(batch.image, batch.text, torch.zeros_like(batch.can_flip), batch.key, batch.caption)
    seen = network.seen[0]
    loss(denoiser, flipped, TrainingAddress(0, 0, 0, 64, 64), training=True)
    assert torch.equal(network.seen[0], seen)  # training flips nothing where a caption forbids it
    loss(denoiser, batch, TrainingAddress(0, 0, 0, 64, 64), training=True)
    changed = (network.seen[0] != seen).any(dim=(1, 2, 3))
    assert 16 <= changed.sum() <= 48


def test_super_resolution_is_given_the_noised_block_mean_and_its_level():
    denoiser, network = denoiser_of()
    batch, address = make_batch(), TrainingAddress(0, 0, 0, 8, 8)
    augmentation = GaussianAugmentation(SCHEDULE, level_max=1.0)
    make_loss(augmentation=augmentation, scale=4)(denoiser, batch, address, training=False)
    cond = network.seen[2]
    means = (batch.image.float() / 127.5 - 1).unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean(dim=(3, 5))
    alpha, sigma = alpha_sigma(SCHEDULE.logsnr(address.uniform("augmentation_level"))[:, None, None, None])
    torch.testing.assert_close(cond.low_res, alpha * means + sigma * address.normal("augmentation_noise", (3, 2, 2)))
    torch.testing.assert_close(cond.low_res_logsnr, SCHEDULE.logsnr(address.uniform("augmentation_level")))
