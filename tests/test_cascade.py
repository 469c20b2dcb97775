import dataclasses
import re
from contextlib import nullcontext

import pytest
import torch

from imagen import build
from imagen.cascade import Cascade, Stage
from imagen.cli import compose
from imagen.data.pixels import to_uint8
from imagen.denoiser import Denoiser
from imagen.errors import UserError
from imagen.evaluation.gallery import Enlarge
from imagen.guidance import NoGuidance
from imagen.randomness import generator_of
from imagen.task import ImageToImage, Inpaint, Travel, Upscale
from imagen.task.picture import picture_at
from imagen.threshold import NoThreshold
from imagen.types import Conditioning, Prediction
from tests.pictures import half_mask, picture, random_pictures


def make_stage(experiment: str, *overrides: str) -> Stage:
    """A stage with small random weights everywhere, the zero-initialised ones too."""
    cfg = compose("train", [f"experiment={experiment}", *overrides])
    network = build.build_network(cfg)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    denoiser = Denoiser(network.eval(), build.instantiate(cfg.parameterization))
    return Stage(experiment, denoiser, **build.sampling_parts(cfg))


FAST = ["sampler.num_steps=3"]


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    encoder = build.build_encoder(compose("train", ["experiment=toy"]))
    return Cascade([make_stage("toy", "sampler=ddpm", "sampler.num_steps=4"), make_stage("toy_sr32", *FAST)], encoder)


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
    for stages in ([sr, base], [sr, sr], [base, base], []):
        with pytest.raises(UserError, match=r"chain|empty"):
            Cascade(stages, cascade.encoder)


def test_stages_and_task_must_begin_alike(cascade):
    alone = Cascade(cascade.stages[1:], cascade.encoder)
    with pytest.raises(UserError, match=r"super-resolution stage \(16 -> 32\).*task=upscale"):
        alone.sample(["x"])
    with pytest.raises(UserError, match=r"base stage \(noise -> 16\).*leave it out"):
        cascade.sample(["x"], task=Upscale(image=picture(16, 16)))


def test_upscale_alone_gives_what_the_stage_makes_of_the_picture(cascade):
    image = picture(16, 16)
    alone = Cascade(cascade.stages[1:], cascade.encoder)
    (drawn,) = alone.sample(["x"], task=Upscale(image=image), seed=3, progress=False).by_stage
    text = cascade.encoder.encode(["x"])
    expected = cascade.stages[1].sample(text, picture_at(image, 16, 16), [generator_of(3, "x", 0, 32)])
    assert (drawn[0].int() - to_uint8(expected).int()).abs().max() <= 1


def test_pictures_to_enlarge_go_with_their_prompts_in_any_batches(cascade):
    alone, given = cascade.last(), random_pictures(3, 16)
    prompts, settings = ["x", "y", "x"], {"num_samples": 2, "seed": 3, "progress": False}
    whole = alone.sample(prompts, task=Enlarge(given), batch_size=4, **settings).final
    for i, prompt in enumerate(prompts):
        one = alone.sample([prompt], task=Enlarge(given[i : i + 1]), **settings).final[0]
        assert (whole[i].int() - one.int()).abs().max() <= 1
    assert not torch.equal(whole[0], whole[2])  # the same prompt and noise, of another picture
    with pytest.raises(UserError, match="2 pictures to enlarge for 3 prompts"):
        alone.sample(prompts, task=Enlarge(given[:2]))


@pytest.mark.parametrize("size", [[32, 48], [64, 32]])
def test_every_stage_draws_its_share_of_the_size(cascade, size):
    height, width = size
    samples = cascade.sample(["x"], size=size, progress=False)
    shapes = [tuple(stage.shape[-2:]) for stage in samples.by_stage]
    assert shapes == [(height // 2, width // 2), (height, width)]
    alone = Cascade(cascade.stages[1:], cascade.encoder)
    assert alone.sample([""], task=Upscale(image=picture(9, 9)), size=size, progress=False).final.shape[-2:] == (
        height,
        width,
    )


def test_a_size_that_does_not_fit_fails_before_any_work(cascade, monkeypatch):
    monkeypatch.setattr(Stage, "draw", None)
    with pytest.raises(UserError, match=r"multiples of 4 .*size=\[32,48\]"):
        cascade.sample(["x"], size=[33, 48])


def inpaint() -> Inpaint:
    return Inpaint(image=picture(40, 40), mask=half_mask(40, 40), resample=2, jump=0.5)


def test_inpainting_keeps_the_known_part_at_every_stage_to_the_bit(cascade):
    samples = cascade.sample(["x"], task=inpaint(), num_samples=2, progress=False)
    for stage in samples.by_stage:
        side = stage.shape[-1]
        known = to_uint8(picture_at(picture(40, 40), side, side))[..., : side // 2]
        assert torch.equal(stage[..., : side // 2], known.expand(1, 2, -1, -1, -1))
        assert not torch.equal(stage[0, 0], stage[0, 1])


@pytest.mark.parametrize(
    "task",
    [
        inpaint(),
        ImageToImage(image=picture(16, 16), strength=0.7, sr_strength=0.7),
        ImageToImage(image=picture(16, 16), strength=0.7, sr_strength=1.0),
    ],
    ids=["inpaint", "image_to_image", "variations"],
)
def test_in_every_task_a_sample_is_the_same_alone_and_among_others(cascade, task):
    among = cascade.sample(["a", "a red circle"], task=task, seed=7, progress=False)
    alone = cascade.sample(["a red circle"], task=task, seed=7, progress=False)
    for many, one in zip(among.by_stage, alone.by_stage, strict=True):
        assert (many[1, 0].int() - one[0, 0].int()).abs().max() <= 1


def test_travel_ends_at_the_two_seeds_own_pictures(cascade):
    task = Travel(to_seed=8, frames=3)
    frames = cascade.sample(["x"], task=task, seed=7, progress=False)
    for frame, seed in ((0, 7), (2, 8)):
        own = cascade.sample(["x"], seed=seed, progress=False)
        for many, one in zip(frames.by_stage, own.by_stage, strict=True):
            assert (many[0, frame].int() - one[0, 0].int()).abs().max() <= 1


def record(monkeypatch, stage: Stage) -> list[Conditioning]:
    """What the stage's network is told from now on."""
    seen, forward = [], stage.denoiser.network.forward
    monkeypatch.setattr(stage.denoiser.network, "forward", lambda *given: seen.append(given[2]) or forward(*given))
    return seen


def test_negative_prompts_take_the_place_of_no_text_in_guidance(cascade, monkeypatch):
    seen = record(monkeypatch, cascade.stages[0])
    plain = cascade.sample(["a", "b"], progress=False)
    assert seen[-1].text.absent.tolist() == [False, False, True, True]
    one = cascade.sample(["a", "b"], negative_prompts=["a blue square"], progress=False)
    assert seen[-1].text.absent.tolist() == [False] * 4
    expected = cascade.encoder.encode(["a blue square"]).tokens
    assert torch.equal(seen[-1].text.tokens[2:], expected.expand(2, -1, -1))
    assert one.negative_prompts == ["a blue square"] * 2
    each = cascade.sample(["a", "b"], negative_prompts=["a blue square", ""], progress=False)
    assert seen[-1].text.absent.tolist() == [False, False, False, True]
    assert not torch.equal(plain.final[0], each.final[0])
    assert (one.final[0].int() - each.final[0].int()).abs().max() <= 1
    assert (plain.final[1].int() - each.final[1].int()).abs().max() <= 1  # an empty negative prompt is none


def test_negative_prompts_that_match_no_prompts_are_refused_and_idle_ones_warned_of(cascade, caplog):
    for unfit in (["a", "b"], []):
        with pytest.raises(UserError, match=r"one for each of the 3 prompts"):
            cascade.sample(["x", "y", "z"], negative_prompts=unfit)
    off = Cascade([make_stage("toy", "guidance.weight=1.0", *FAST)], cascade.encoder)
    off.sample(["x"], negative_prompts=["y"], progress=False)
    assert "negative_prompts do nothing" in caplog.text
    caplog.clear()
    cascade.sample(["x"], negative_prompts=["y"], progress=False)
    assert not caplog.text


def test_an_empty_prompt_is_none(cascade, monkeypatch):
    seen = record(monkeypatch, cascade.stages[1])
    cascade.sample(["", "x"], progress=False)
    assert seen[0].text.absent.tolist()[:2] == [True, False]


def test_truncated_hands_the_unfinished_sample_on_and_shows_the_finished_one(cascade, monkeypatch):
    truncated = make_stage("toy_sr32", "conditioning_augmentation=truncated", "augmentation_level=0.3", *FAST)
    seen = record(monkeypatch, truncated)
    both = Cascade([cascade.stages[0], truncated], cascade.encoder)
    samples = both.sample(["x"], seed=7, progress=False)
    base = cascade.stages[0]
    generators = [generator_of(7, "x", 0, 16)]
    cond = base.condition(cascade.encoder.encode(["x"]), None, generators)
    drawn = base.draw(cond, (16, 16), generators, early_stop=truncated.early_stop)
    assert drawn.unfinished is not None
    torch.testing.assert_close(seen[0].low_res[:1], drawn.unfinished)
    assert torch.equal(samples.by_stage[0][0], to_uint8(drawn.pictures))
    # no unfinished sample of a user's picture: it is noised, as Gaussian does
    alone = Cascade([truncated], cascade.encoder)
    gaussian = make_stage("toy_sr32", "augmentation_level=0.3", *FAST)
    task = Upscale(image=picture(16, 16))
    one, other = (c.sample(["x"], task=task, progress=False) for c in (alone, Cascade([gaussian], cascade.encoder)))
    assert torch.equal(one.final, other.final)


def offloaded(cascade: Cascade) -> Cascade:
    return Cascade(cascade.stages, cascade.encoder).to("cpu:0", offload=True)  # to torch not "cpu", so that it copies


def test_offloaded_stages_draw_the_same_bits_and_are_where_they_were(cascade, monkeypatch):
    first = [next(stage.denoiser.parameters()) for stage in cascade.stages]
    home, seen = [parameter.data_ptr() for parameter in first], []
    plain = cascade.sample(["a", "b"], negative_prompts=["c"], num_samples=2, seed=7, progress=False)
    draw = Stage.draw
    monkeypatch.setattr(Stage, "draw", lambda *a, **k: seen.append([p.data_ptr() for p in first]) or draw(*a, **k))
    visited = offloaded(cascade).sample(["a", "b"], negative_prompts=["c"], num_samples=2, seed=7, progress=False)
    assert all(map(torch.equal, plain.by_stage, visited.by_stage))
    assert [[place == own for place, own in zip(row, home, strict=True)] for row in seen] == [
        [False, True],  # the first stage is away, the second at home
        [True, False],
    ]
    assert [parameter.data_ptr() for parameter in first] == home
    assert offloaded(cascade).first(1).device == torch.device("cpu:0")


def test_rounded_weights_draw_the_same_bits(cascade):
    stages = [make_stage("toy", "trainer.precision=bf16-mixed"), make_stage("toy_sr32", "trainer.precision=bf16-mixed")]
    plain = Cascade(stages, cascade.encoder).sample(["a", "b"], progress=False)
    sizes = []
    for stage in stages:
        sizes.append(sum(p.nbytes for p in stage.denoiser.parameters()))
        stage.round_weights()
        assert sum(p.nbytes for p in stage.denoiser.parameters()) < 0.6 * sizes[-1]
    rounded = Cascade(stages, cascade.encoder).sample(["a", "b"], progress=False)
    assert all(map(torch.equal, plain.by_stage, rounded.by_stage))


def test_pictures_are_the_same_however_memory_makes_them_be_split(cascade, monkeypatch):
    whole = cascade.sample(["a", "b", "c"], num_samples=2, seed=7, progress=False)
    draw, sizes = Stage.draw, []

    def narrow(stage: Stage, cond: Conditioning, *args, **kwargs):
        count = len(cond.text.mask)
        sizes.append((stage.resolution, count))
        if stage.resolution == 32 and count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(stage, cond, *args, **kwargs)

    bars = []
    monkeypatch.setattr(Stage, "draw", narrow)
    monkeypatch.setattr("imagen.cascade.tqdm", lambda **settings: bars.append(Bar(settings["total"])) or bars[-1])
    split = Cascade(cascade.stages, cascade.encoder).sample(["a", "b", "c"], num_samples=2, seed=7)
    assert sizes == [(16, 6), (32, 6), (32, 3), (32, 2), (32, 2), (32, 2)]
    assert bars[0].done == bars[0].total == 6 * (4 + 3)
    for one, other in zip(whole.by_stage, split.by_stage, strict=True):
        assert (one.int() - other.int()).abs().max() <= 1


def test_steps_that_ran_out_of_memory_are_not_counted(cascade, monkeypatch):
    bars, forward, calls = [], cascade.stages[0].denoiser.network.forward, []

    def once(*given):
        calls.append(len(given[0]))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*given)

    monkeypatch.setattr(cascade.stages[0].denoiser.network, "forward", once)
    monkeypatch.setattr("imagen.cascade.tqdm", lambda **settings: bars.append(Bar(settings["total"])) or bars[-1])
    Cascade(cascade.stages, cascade.encoder).sample(["a", "b"])
    assert calls == [4] * 3 + [2] * 8
    assert bars[0].done == bars[0].total


def test_each_prompt_is_encoded_once_for_all_stages_and_samples(cascade, monkeypatch):
    asked, encode = [], cascade.encoder.encode
    monkeypatch.setattr(cascade.encoder, "encode", lambda captions: asked.append(captions) or encode(captions))
    cascade.sample(["a", "b", "a"], negative_prompts=["c"], num_samples=3, progress=False)
    assert asked == [["a", "b"], ["c"]]


def test_both_halves_of_guidance_are_one_batch(cascade, monkeypatch):
    sizes, forward = [], cascade.stages[0].denoiser.network.forward
    count = lambda *given: sizes.append(len(given[0])) or forward(*given)  # noqa: E731
    monkeypatch.setattr(cascade.stages[0].denoiser.network, "forward", count)
    cascade.sample(["a", "b", "c"], progress=False)
    assert sizes == [6] * 4


def test_compiled_networks_are_compiled_for_each_shape_and_graphs_only_where_weights_stay(cascade, monkeypatch):
    asked = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda module, **options: asked.append(options))
    stages = [dataclasses.replace(stage) for stage in cascade.stages]
    Cascade(stages, cascade.encoder).compile()
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": None}] * 2
    stages[0].compile(graphs=True)
    assert asked[-1]["mode"] == "reduce-overhead"


def test_predictions_of_cuda_graphs_outlive_the_next_replay(cascade, monkeypatch):
    replays = []
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: replays.append(1))
    stage = dataclasses.replace(cascade.stages[0], graphs=True, threshold=NoThreshold(), guidance=NoGuidance())
    buffer = torch.zeros(1, 3, 16, 16)  # that every replay writes to
    monkeypatch.setattr(cascade.stages[0].denoiser, "forward", lambda x, logsnr, cond: Prediction(buffer.add_(1)))
    denoise = stage.guided_denoiser()
    cond = Conditioning(cascade.encoder.encode(["a"]))
    first, second = (denoise(torch.zeros(1, 3, 16, 16), torch.zeros(1), cond).x0 for _ in range(2))
    assert (first.mean(), second.mean()) == (1, 2)
    assert len(replays) == 2


def test_progress_counts_every_step(cascade, monkeypatch):
    truncated = make_stage("toy_sr32", "conditioning_augmentation=truncated", "augmentation_level=0.3", *FAST)
    task, bars = inpaint(), []
    monkeypatch.setattr("imagen.cascade.tqdm", lambda **settings: bars.append(Bar(settings["total"])) or bars[-1])
    Cascade([cascade.stages[0], truncated], cascade.encoder).sample(["x", "y"], task=task, batch_size=1)
    assert bars[0].done == bars[0].total == 2 * task.num_steps(4 + 3)


class Bar(nullcontext):
    """A progress bar that counts."""

    def __init__(self, total: int) -> None:
        super().__init__(self)
        self.total, self.done = total, 0

    def update(self, steps: int = 1) -> None:
        self.done += steps


@pytest.mark.parametrize("prompts", [[], "a dog"])
def test_an_empty_prompt_list_is_refused(cascade, prompts):
    with pytest.raises(UserError, match=re.escape(repr(prompts))):
        cascade.sample(prompts)
