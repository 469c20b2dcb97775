"""Configs become objects here: what is trained, and what was trained, rebuilt."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from imagen.build_check import check, check_crop, check_text
from imagen.cascade import Cascade
from imagen.cli import as_overrides
from imagen.config_check import typed
from imagen.denoiser import Denoiser
from imagen.devices import pick_device
from imagen.errors import UserError
from imagen.guidance import Guidance
from imagen.instantiate import instantiate, picked_by
from imagen.loss import DiffusionLoss
from imagen.runs import Weights, plain, read_head, read_weights
from imagen.sampler import Sampler
from imagen.skip_init import SkipInit
from imagen.slots import slot_names
from imagen.stage import Stage
from imagen.text_encoder import TextEncoder

if TYPE_CHECKING:  # Lightning takes seconds to load, and transformers with it: who only samples needs neither
    import lightning.pytorch.loggers

    import imagen.lightning_module

REBUILT_FROM = (
    *("text_encoder", "null_text", "text_pooling", "network", "channels_last", "seed", "trainer"),
    *("schedule", "parameterization", "conditioning_augmentation", "augmentation_schedule", "augmentation_level"),
    *("guidance", "threshold", "sampler", "spacing", "resolution", "low_resolution"),
)
"""What of a run's config a stage is rebuilt from."""

OF_A_SWEEP = ("sweep", "finished", "measure")
"""Keys that say which sweep a run is a point of, which is nothing of its own."""


def build_encoder(cfg: DictConfig) -> TextEncoder:
    encoder: TextEncoder = instantiate(cfg.text_encoder)
    encoder.picked_by = " ".join(as_overrides("text_encoder", cfg.text_encoder))
    return encoder


def build_data(cfg: DictConfig) -> "lightning.LightningDataModule":
    return instantiate(cfg.data, build_encoder(cfg))


def build_network(cfg: DictConfig) -> nn.Module:
    """The network with its initial weights: a function of ``cfg.seed``, without touching torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return instantiate(cfg.network, instantiate(cfg.null_text), partial(instantiate, cfg.text_pooling))


def sampling_parts(cfg: DictConfig) -> dict[str, Any]:
    """All of a stage but its denoiser: built first, so that what does not fit is refused before any network is made.

    Raises: UserError if the sampler needs what the parameterization does not give, the guidance what the sampler does
    not do, or the augmentation level is not in [0, 1].
    """
    if not 0 <= cfg.augmentation_level <= 1:
        raise UserError(f"augmentation_level={cfg.augmentation_level} must be between 0 (no noise) and 1 (noise alone)")
    sampler: Sampler = instantiate(cfg.sampler)
    guidance: Guidance = instantiate(cfg.guidance)
    sampler.check(instantiate(cfg.parameterization), picked_by("parameterization", cfg))
    guidance.check(sampler, picked_by("sampler", cfg))
    guidance.find(lambda source: find_denoiser(source, cfg))
    return {
        "schedule": instantiate(cfg.schedule),
        "sampler": sampler,
        "spacing": instantiate(cfg.spacing),
        "guidance": guidance,
        "threshold": instantiate(cfg.threshold),
        "augmentation": instantiate(cfg.conditioning_augmentation, instantiate(cfg.augmentation_schedule)),
        "augmentation_level": cfg.augmentation_level,
        "resolution": cfg.resolution,
        "low_resolution": cfg.low_resolution,
        "bf16": str(cfg.trainer.precision).startswith("bf16"),
    }


def build_module(
    cfg: DictConfig, begin: Callable[[nn.Module], None] = lambda network: None
) -> "imagen.lightning_module.DiffusionModule":
    """The training module: network, loss, average and optimizer of one stage; ``begin`` may change first weights."""
    from imagen.lightning_module import DiffusionModule

    check(cfg)
    parts = sampling_parts(cfg)
    network = build_network(cfg)
    begin(network)
    check_crop(cfg, network)
    check_text(cfg, network)
    instantiate(cfg.group_norm).apply(network)
    denoiser = Denoiser(network, instantiate(cfg.parameterization))
    ema = instantiate(cfg.ema, network)
    instantiate(cfg.recompute).apply(network)  # its average, made before, needs none
    stage = Stage(cfg.name, Denoiser(ema.network, denoiser.parameterization), **parts)
    loss = DiffusionLoss(
        stage.schedule,
        instantiate(cfg.weighting),
        stage.augmentation,
        scale=stage.scale,
        caption_dropout=cfg.caption_dropout,
    )
    return DiffusionModule(
        denoiser,
        loss,
        ema,
        stage,
        instantiate(cfg.optimizer),
        instantiate(cfg.lr_scheduler),
        seed=cfg.seed,
        channels_last=cfg.channels_last,
        config=run_config(cfg),
    )


def load_stage(weights: Weights, name: str, slot: DictConfig | None = None) -> Stage:
    """A stage rebuilt from what was trained, in evaluation mode, with ``slot``'s sampling settings where it has any."""
    cfg = _slotted(weights, slot)
    parts = sampling_parts(cfg)
    return Stage(name, _rebuilt(cfg, weights, name), **parts)


def _slotted(weights: Weights, slot: DictConfig | None) -> DictConfig:
    cfg = cast(DictConfig, OmegaConf.create(weights.config))
    for key, value in (slot or {}).items():
        if value not in (None, {}):
            OmegaConf.update(cfg, str(key), value, merge=False)
    return cfg


def find_denoiser(source: str, guided: DictConfig) -> Callable[[], Denoiser]:
    """How to load the averaged denoiser of a run folder or an exported ``.safetensors``, to guide the stage ``guided``.

    Raises: UserError, without reading any weights, unless both stages draw and are given pictures of the same sizes,
    and read the same text.
    """
    head = read_head(source)
    _check_whole(head, source)
    cfg = cast(DictConfig, OmegaConf.create(head.config))
    for key in ("resolution", "low_resolution"):
        if cfg[key] != guided[key]:
            raise UserError(
                f"guidance.checkpoint={source} has {key}={typed(cfg[key])}, which does not go with the stage that it "
                f"is to guide: give a run with {key}={typed(guided[key])}"
            )
    _check_encoder(build_encoder(guided).declared(), [head], [source])

    def load() -> Denoiser:
        weights = read_weights(source)
        return _rebuilt(cast(DictConfig, OmegaConf.create(weights.config)), weights, source)

    return load


def _rebuilt(cfg: DictConfig, weights: Weights, name: str) -> Denoiser:
    with SkipInit():
        network = build_network(cfg)
    try:
        network.load_state_dict(weights.state, assign=True)
    except RuntimeError as error:
        raise UserError(f"stage '{name}' is damaged: its weights do not fit its own config ({error})") from error
    network.eval().requires_grad_(False)
    if cfg.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Denoiser(network, instantiate(cfg.parameterization))


def sources_of(stages: object) -> list[str]:
    """Where ``stages`` lie. Raises: UserError if it is no list, or an empty one."""
    if isinstance(stages, str | Path) or not isinstance(stages, Iterable) or not (found := [*map(str, stages)]):
        raise UserError(f"stages={stages} is not a list of run folders or .safetensors files, base first")
    return found


def load_cascade(
    stages: Sequence[str | Path],
    *,
    slots: dict[str, DictConfig] | None = None,
    text_encoder: DictConfig | None = None,
    device: str | torch.device = "auto",
    precision: str | None = None,
    offload: bool = False,
    compile: bool = False,
) -> Cascade:
    """A cascade from run folders or exported ``.safetensors``, base first; without a base it enlarges pictures alone.

    ``slots`` (base, sr1, sr2) replaces parts of the stages' own sampling settings. ``text_encoder`` replaces the way
    the encoder is found (a local folder, say), not what it is: its fingerprint must equal the runs'. ``precision`` is
    bf16 or fp32, by default what each stage was trained in. With ``offload`` the device holds one network at a time,
    and no other picture comes of it; with ``compile`` networks are compiled when they first draw.

    Raises: UserError if a stage is missing or damaged, the stages do not chain, or the encoder is not the runs'.
    """
    stages = sources_of(stages)
    if precision not in (None, "bf16", "fp32"):
        raise UserError(f"precision={precision} must be bf16, fp32 or null, as each stage was trained")
    read = [read_weights(source) for source in stages]
    for weights, source in zip(read, stages, strict=True):
        _check_whole(weights, source)
    names = slot_names([weights.config for weights in read])
    configs = [_slotted(weights, (slots or {}).get(name)) for weights, name in zip(read, names, strict=True)]
    parts = [_slot_parts(name, cfg) for name, cfg in zip(names, configs, strict=True)]  # before any network is built
    built = [
        Stage(name, _rebuilt(cfg, weights, name), **part)
        for name, cfg, weights, part in zip(names, configs, read, parts, strict=True)
    ]
    for stage in built:
        stage.bf16 = stage.bf16 if precision is None else precision == "bf16"
        if stage.bf16:
            stage.round_weights()
    encoder: TextEncoder = instantiate(text_encoder or DictConfig(read[0].config["text_encoder"]))
    _check_encoder(encoder.fingerprint(), read, stages)
    cascade = Cascade(built, encoder).to(pick_device(device), offload=offload)
    return cascade.compile() if compile else cascade


def _slot_parts(name: str, cfg: DictConfig) -> dict[str, Any]:
    """Raises: UserError that begins with the slot's name, since the same key is there for each of them."""
    try:
        return sampling_parts(cfg)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _check_whole(weights: Weights, source: str) -> None:
    """Raises: UserError if the config that travels with the weights lacks what a stage is rebuilt from."""
    lacking = [key for key in REBUILT_FROM if key not in weights.config]
    if lacking:
        raise UserError(
            f"stage '{source}' is damaged or of another version: its config lacks {', '.join(lacking)}; train it again"
        )


def _check_encoder(own: dict[str, str | int | None], read: list[Weights], sources: list[str]) -> None:
    """Raises: UserError if what ``own`` says of the text encoder is not what the stages were trained with."""
    for weights, source in zip(read, sources, strict=True):
        trained = weights.text_fingerprint
        differing = [key for key, value in own.items() if trained.get(key) != value]
        if differing:
            pairs = ", ".join(f"{key}: {own[key]!r} here, {trained.get(key)!r} there" for key in differing)
            raise UserError(
                f"text encoder '{own['name']}' is not the one that stage '{source}' was trained with ({pairs})"
            )


def run_config(cfg: DictConfig) -> dict[str, Any]:
    """The part of a composed config that is the run: plain, resolved, without Hydra's own node and the sweep's keys."""
    return {key: value for key, value in plain(cfg).items() if key not in ("hydra", "experiment", *OF_A_SWEEP)}
