"""The paper's presets, built: every value that the paper states, asserted of the objects and never of the yaml."""

import functools
import math
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from imagen import build
from imagen.adafactor import Adafactor
from imagen.cli import compose
from imagen.conditioning_augmentation import GaussianAugmentation
from imagen.ema import ExponentialEMA
from imagen.guidance import ClassifierFreeGuidance
from imagen.lightning_module import DiffusionModule
from imagen.metrics_log import MetricsLog
from imagen.network.attention import CrossAttention, SelfAttention
from imagen.network.blocks import ResBlock
from imagen.null_text import ZeroedText
from imagen.parameterization import Epsilon
from imagen.runs import RunFolder, Weights
from imagen.sampler import DDPM
from imagen.slots import register
from imagen.spacing import UniformTime
from imagen.summary import example, markdown_row, summarize
from imagen.text_encoder import T5
from imagen.text_pooling import AttentionPool, TextPooling
from imagen.threshold import DynamicThreshold
from imagen.trainer import build_trainer
from imagen.types import Conditioning

WIDTHS = {"imagen_base64": 512, "imagen_base64_300m": 192, "imagen_base64_500m": 256, "imagen_base64_1b": 320}
SUPER_RESOLUTION = ["imagen_sr256", "imagen_sr1024"]
PRESETS = [*WIDTHS, *SUPER_RESOLUTION]
MILLIONS = {
    "imagen_base64": (2000, 2400),
    "imagen_base64_300m": (280, 420),
    "imagen_base64_500m": (480, 600),
    "imagen_base64_1b": (800, 1250),
    "imagen_sr256": (400, 750),
    "imagen_sr1024": (380, 750),
}
SIZES_PAGE = Path(__file__).parents[1] / "docs" / "sizes.md"
TIMES = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)


@functools.cache
def config(name: str) -> DictConfig:
    return compose("train", [f"experiment={name}", "data.root=nowhere"])


@pytest.fixture(scope="module")
def modules() -> dict[str, DiffusionModule]:
    """Every preset on the meta device."""
    built = {}
    for name in PRESETS:
        cfg = config(name)
        with torch.device("meta"):
            built[name] = build.build_module(cfg)
    return built


@pytest.mark.parametrize("name", PRESETS)
def test_its_network_builds_on_the_meta_device_in_under_a_second(name):
    cfg = config(name)
    started = time.process_time()  # others may have the processor meanwhile
    with torch.device("meta"):
        build.build_network(cfg)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name, modules):
    low, high = MILLIONS[name]
    assert low * 1e6 <= parameters(modules[name]) <= high * 1e6


def parameters(module: DiffusionModule) -> int:
    return sum(parameter.numel() for parameter in module.denoiser.network.parameters())


Passed = tuple[nn.Module, int, int, int]
"""A layer, the channels and the side of its input, and the side of its output."""


@pytest.fixture(scope="module")
def passed(modules) -> dict[str, list[Passed]]:
    """Each preset's residual blocks and attentions in the order in which a picture passes them."""
    return {name: in_order(module, config(name)) for name, module in modules.items()}


def in_order(module: DiffusionModule, cfg: DictConfig) -> list[Passed]:
    seen = []

    def record(layer: nn.Module, args, output) -> None:
        seen.append((layer, args[0].shape[1], args[0].shape[-1], output.shape[-1]))

    kinds = (ResBlock, SelfAttention, CrossAttention)
    hooks = [layer.register_forward_hook(record) for layer in module.denoiser.modules() if isinstance(layer, kinds)]
    with torch.device("meta"), torch.no_grad():
        module.denoiser.network(*example(cfg, cfg.resolution))
    for hook in hooks:
        hook.remove()
    return seen


def kind(layers: list[Passed], *kinds: type) -> list[Passed]:
    return [layer for layer in layers if isinstance(layer[0], kinds)]


@pytest.mark.parametrize("name", WIDTHS)
def test_base_network(name, modules, passed):
    width = WIDTHS[name]
    blocks = kind(passed[name], ResBlock)
    of_side = {64: width, 32: 2 * width, 16: 3 * width, 8: 4 * width}
    assert all(block.conv2.out_channels == of_side[side] for block, _, before, side in blocks if before == side)
    # 3 on the way down and 4 on the way up at each level, 2 in the middle; between levels the resampling is in a block
    assert Counter(side for _, _, before, side in blocks if before == side) == {64: 7, 32: 7, 16: 7, 8: 9}
    assert [(before, side) for _, _, before, side in blocks if before != side] == [
        *((64, 32), (32, 16), (16, 8)),
        *((8, 16), (16, 32), (32, 64)),
    ]
    for block, *_ in blocks:
        assert block.scale_shift.out_features == 2 * block.conv2.out_channels
        assert block.skip_scale == 1.0
    attentions = kind(passed[name], SelfAttention, CrossAttention)
    assert Counter(side for _, _, side, _ in attentions) == {32: 7, 16: 7, 8: 8}
    for layer, channels, *_ in attentions:
        assert isinstance(layer, SelfAttention)
        assert channels // layer.num_heads == 64
        assert isinstance(layer.text.norm, nn.LayerNorm)
        assert layer.text.kv.out_features == 2 * channels
    assert not any(isinstance(layer, nn.Dropout) for layer in modules[name].denoiser.network.modules())


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_super_resolution_network(name, modules, passed):
    network = modules[name].denoiser.network
    size = {"imagen_sr256": 256, "imagen_sr1024": 1024}[name]
    levels = [(size // 2, 128, 2), (size // 4, 256, 4), (size // 8, 512, 8), (size // 16, 1024, 8)]
    blocks = kind(passed[name], ResBlock)
    for half in (blocks[:22], blocks[:21:-1]):  # down, and up backwards
        expected = [(side, channels) for side, channels, count in levels for _ in range(count)]
        assert [(side, block.conv2.out_channels) for block, _, _, side in half] == expected
    assert len(blocks) == 44
    for block, _, before, side in blocks:
        assert before == side
        assert block.skip_scale == pytest.approx(1 / math.sqrt(2))
        assert block.scale_shift.out_features == 2 * block.conv2.out_channels
    own = {"imagen_sr256": SelfAttention, "imagen_sr1024": CrossAttention}[name]
    attentions = kind(passed[name], SelfAttention, CrossAttention)
    assert [(type(layer), channels, side) for layer, channels, side, _ in attentions] == [(own, 1024, size // 16)] * 2
    for layer, *_ in attentions:
        assert layer.num_heads == 8
        assert isinstance(layer.text.norm, nn.LayerNorm)
    strides = [layer.stride for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)]
    assert strides == [(2, 2)] * 4
    assert network.stride == 16
    assert network.conv_in.in_channels == 6  # the noisy picture and the low-resolution one
    assert not any(isinstance(layer, nn.Dropout) for layer in network.modules())


@pytest.mark.parametrize("name", PRESETS)
def test_text(name, modules):
    cfg = config(name)
    encoder = build.build_encoder(cfg)
    assert isinstance(encoder, T5)
    assert (encoder.name, encoder.width) == ("t5_xxl", 4096)
    network = modules[name].denoiser.network
    pools = [module for module in network.modules() if isinstance(module, AttentionPool)]
    assert len(pools) == len([module for module in network.modules() if isinstance(module, TextPooling)]) == 1
    assert pools[0].num_heads * 64 == pools[0].q.in_features
    assert isinstance(pools[0].norm, nn.LayerNorm)
    assert [type(m) for m in network.modules() if isinstance(m, ZeroedText)] == [ZeroedText]
    assert modules[name].loss.caption_dropout == 0.1
    text = example(cfg, 64)[2].text
    nothing = ZeroedText()(Conditioning(text).null_text().text)
    assert not nothing.tokens.any()


@pytest.mark.parametrize("name", PRESETS)
def test_schedule_target_and_loss(name, modules):
    module = modules[name]
    schedule = module.loss.schedule
    assert schedule is module.stage.schedule
    if name == "imagen_sr1024":  # DDPM's betas in continuous time
        integral = 0.1 * TIMES + (20 - 0.1) / 2 * TIMES**2
        alpha_squared = torch.exp(-integral)
        discrete = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        assert torch.allclose(alpha_squared, discrete[(TIMES * 1000).round().long() - 1], rtol=0.1)
    else:
        alpha_squared = torch.cos(math.pi / 2 * TIMES) ** 2
    assert torch.allclose(schedule.logsnr(TIMES), torch.log(alpha_squared / (1 - alpha_squared)), atol=1e-3)
    assert isinstance(module.denoiser.parameterization, Epsilon)
    logsnr = torch.linspace(-15, 15, 7, device="cpu")
    x0, eps, output = torch.randn(3, 7, 3, 4, 4, device="cpu")
    error = module.denoiser.parameterization.error(output, x0, eps, logsnr)
    assert torch.allclose(module.loss.weighting.loss(error, logsnr), (output - eps).square().mean((1, 2, 3)))
    assert not list(module.loss.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_augmentation_and_crops(name, modules):
    module, cfg = modules[name], config(name)
    crop = {"imagen_sr1024": 256}.get(name)  # None: the whole picture
    assert build.build_data(cfg).crop == crop
    sizes = (module.stage.resolution, module.stage.low_resolution)
    if name in WIDTHS:
        assert sizes == (64, None)
        assert module.loss.scale is None
        return
    assert sizes == {"imagen_sr256": (256, 64), "imagen_sr1024": (1024, 256)}[name]
    assert module.loss.scale == 4
    augmentation = module.loss.augmentation
    assert isinstance(augmentation, GaussianAugmentation)
    u = torch.linspace(0, 1, 5)
    assert torch.equal(augmentation.train_level(u), u)  # U(0, 1)
    level = torch.full((4096,), 0.3)
    noised, logsnr = augmentation(torch.ones(4096, 3, 1, 1), level, torch.randn(4096, 3, 1, 1))
    alpha = math.cos(math.pi / 2 * 0.3)  # cosine: unsaid
    assert noised.mean() == pytest.approx(alpha, abs=0.02)
    assert noised.std() == pytest.approx(math.sqrt(1 - alpha**2), abs=0.02)  # variance-preserving
    assert logsnr.sigmoid() == pytest.approx(alpha**2, abs=1e-4)


OPTAX = {"decay_rate": 0.8, "eps": 1e-30, "min_scale": 1e-3, "clip_threshold": 1.0, "min_factored": 128}
"""The defaults of ``optax.adafactor``."""


@pytest.mark.parametrize("name", PRESETS)
def test_optimizer_and_its_learning_rate(name, modules):
    module, cfg = modules[name], config(name)
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    group = optimizer.param_groups[0]
    assert sum(p.numel() for p in group["params"]) == parameters(module)
    assert group["weight_decay"] == 0.0
    if name in WIDTHS:
        assert type(optimizer) is Adafactor
        assert {key: group[key] for key in OPTAX} == OPTAX
    else:
        assert type(optimizer) is torch.optim.AdamW
        assert (tuple(group["betas"]), group["eps"]) == ((0.9, 0.999), 1e-8)
    (factor,) = schedule.lr_lambdas
    at = {0: 0.0, 5_000: 5e-5, 10_000: 1e-4, 2_500_000: 0.0}
    middle = (1_250_000 - 10_000) / (2_500_000 - 10_000)
    at[1_250_000] = 1e-4 * (1 + math.cos(math.pi * middle)) / 2
    for step, expected in at.items():
        assert optimizer.defaults["lr"] * factor(step) == pytest.approx(expected, abs=1e-12)
    assert build.build_data(cfg).batch_size == 2048


@pytest.mark.parametrize("name", PRESETS)
def test_trainer(name, tmp_path):
    cfg = compose("train", [f"experiment={name}", "data.root=nowhere", "logger=[]"])
    log = MetricsLog(tmp_path / "metrics.jsonl", global_batch=1, log_every_n_steps=1)
    trainer = build_trainer(cfg, RunFolder(tmp_path), log)
    assert trainer.max_steps == (400_000 if name.count("_") == 2 else 2_500_000)
    assert trainer.max_epochs in (None, -1)  # steps alone end it
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (1.0, None)  # None: by norm
    assert trainer.precision == "bf16-mixed"
    assert trainer.accumulate_grad_batches == 1


@pytest.mark.parametrize("name", PRESETS)
def test_ema(name, modules):
    ema = modules[name].ema
    assert isinstance(ema, ExponentialEMA)
    assert ema.decay == 0.9999
    assert ema.network is modules[name].stage.denoiser.network


@pytest.mark.parametrize("name", PRESETS)
def test_sampling(name, modules):
    stage = modules[name].stage
    assert isinstance(stage.sampler, DDPM)
    assert isinstance(stage.spacing, UniformTime)
    assert stage.sampler.num_steps == 256
    times = torch.arange(255, 0, -1, dtype=torch.float64) / 256
    assert torch.allclose(stage.grid()[1:-1], stage.schedule.logsnr(times))
    assert isinstance(stage.guidance, ClassifierFreeGuidance)
    assert stage.guidance.weight == (5.0 if name in WIDTHS else 8.0)
    assert isinstance(stage.threshold, DynamicThreshold)
    assert (stage.threshold.percentile, stage.threshold.cap) == (0.995, None)
    if name in SUPER_RESOLUTION:
        assert stage.augmentation_level == 0.1
    assert stage.bf16


TOYS = ["toy", "toy_sr32", "toy_sr64"]


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> str:
    """``stages=`` of three untrained stages whose own settings are none of the paper's."""
    folder = tmp_path_factory.mktemp("toys")
    for name in TOYS:
        larger = ["resolution=64", "low_resolution=32"] if name == "toy_sr64" else []
        own = ["guidance=interval", "threshold=static", "sampler=dpmpp_2m", "spacing=karras"]
        cfg = compose("train", [f"experiment={name.replace('64', '32')}", *larger, *own])
        fingerprint = build.build_encoder(cfg).fingerprint()
        state = build.build_network(cfg).state_dict()
        Weights(state, build.run_config(cfg), fingerprint, 0).save(folder / f"{name}.safetensors")
    return f"stages=[{','.join(str(folder / f'{name}.safetensors') for name in TOYS)}]"


@pytest.mark.parametrize("script", ["sample", "evaluate"])
@pytest.mark.parametrize(
    ("setting", "weights", "levels"),
    [("imagen", [5.0, 8.0, 8.0], [0.0, 0.1, 0.1]), ("imagen_coco_fid", [1.35, 8.0, 8.0], [0.0, 0.0, 0.1])],
)
def test_sampling_settings_fill_the_slots_of_any_run(toys, script, setting, weights, levels):
    register([toys])
    cfg = compose(script, [toys, f"sampling={setting}"])
    cascade = build.load_cascade(cfg.stages, slots={slot: cfg[slot] for slot in ("base", "sr1", "sr2")}, device="cpu")
    assert [stage.guidance.weight for stage in cascade.stages] == weights
    assert [stage.augmentation_level for stage in cascade.stages] == levels
    for stage in cascade.stages:
        assert type(stage.guidance) is ClassifierFreeGuidance
        assert type(stage.sampler) is DDPM
        assert type(stage.spacing) is UniformTime
        assert (stage.sampler.num_steps, stage.sampler.gamma) == (256, 0.0)
        assert (stage.threshold.percentile, stage.threshold.cap) == (0.995, None)


def test_a_slot_of_a_sampling_setting_can_be_set_anew(toys):
    register([toys])
    cfg = compose("sample", [toys, "sampling=imagen", "sr2.guidance.weight=4", "sampler@base.sampler=ddim"])
    assert cfg.sr2.guidance.weight == 4
    assert cfg.base.sampler["_target_"] == "imagen.sampler.DDIM"


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-8])
def test_adafactor_is_optaxs_at_any_scale_of_the_gradient(scale):
    """Adafactor (arXiv 1804.04235, algorithm 4) with the defaults that the paper's listing takes from optax."""
    torch.manual_seed(0)
    start = torch.randn(130, 140)
    gradients = [scale * torch.randn(130, 140) * torch.linspace(0.1, 3, 140) for _ in range(10)]
    parameter = nn.Parameter(start.clone())
    optimizer = build.instantiate(config("imagen_base64").optimizer)([parameter])
    expected, rows, columns = start.double(), torch.zeros(130, 1).double(), torch.zeros(1, 140).double()
    for step, gradient in enumerate(gradients, 1):
        parameter.grad = gradient.clone()
        optimizer.step()
        squared = gradient.double() ** 2 + 1e-30
        rows = rows.lerp(squared.mean(1, keepdim=True), step**-0.8)
        columns = columns.lerp(squared.mean(0, keepdim=True), step**-0.8)
        update = gradient / (rows * columns / rows.mean()).sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        expected = expected - 1e-4 * max(1e-3, expected.square().mean().sqrt().item()) * update
    moved = (expected - start).norm()
    assert (parameter.detach() - expected).norm() < 1e-3 * moved


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_of_sizes_is_current(name, modules):
    page = SIZES_PAGE.read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{name}` \|.*$", page, flags=re.MULTILINE)
    assert row.split("|")[2].strip() == f"{parameters(modules[name]):,}"


def test_the_page_of_sizes_has_the_smallest_presets_other_numbers():
    row = markdown_row("imagen_base64_300m", summarize(config("imagen_base64_300m")))
    assert row in SIZES_PAGE.read_text(encoding="utf-8")
