"""What of a training config does not go together, said before anything is built."""

import math
from typing import cast

import torch
from omegaconf import DictConfig
from torch import nn

from imagen.cli import INSTEAD
from imagen.conditioning_augmentation import NoAugmentation
from imagen.config_check import typed
from imagen.errors import UserError
from imagen.instantiate import instantiate, picked_by
from imagen.parameterization import Parameterization


def check(cfg: DictConfig) -> None:
    """Raises: UserError naming two parts of a training config that do not go together, before anything is built."""
    low = cfg.low_resolution
    if low is not None and (low >= cfg.resolution or cfg.resolution % low):
        raise UserError(f"low_resolution={low} must divide resolution={cfg.resolution} and be smaller")
    if cfg.network.low_res != (low is not None):
        raise UserError(
            f"network.low_res={typed(cfg.network.low_res)} does not go with low_resolution={typed(low)}: "
            "a super-resolution stage needs both, network.low_res=true and the size that it enlarges; a base stage "
            "neither"
        )
    if "accumulate_grad_batches" in cfg.trainer:
        raise UserError(INSTEAD["trainer.accumulate_grad_batches"])
    if cfg.find_batch_size and cfg.micro_batch_size is not None:
        raise UserError(f"find_batch_size=true does not go with micro_batch_size={cfg.micro_batch_size}: set one")
    if low is None:
        _check_base(cfg)
    parameterization: Parameterization = instantiate(cfg.parameterization)
    if cfg.network.out_channels != parameterization.out_channels:
        raise UserError(
            f"network.out_channels={cfg.network.out_channels} does not go with {picked_by('parameterization', cfg)}, "
            f"which reads {parameterization.out_channels}: set network.out_channels={parameterization.out_channels}"
        )
    _check_optimizer(cfg)


def _check_base(cfg: DictConfig) -> None:
    """Raises: UserError if a base stage is told what only a super-resolution stage can do."""
    augmentation = instantiate(cfg.conditioning_augmentation, instantiate(cfg.augmentation_schedule))
    clashes = {  # what is set: whether it clashes, and what does not
        picked_by("conditioning_augmentation", cfg): (not isinstance(augmentation, NoAugmentation), "none"),
        f"augmentation_level={cfg.augmentation_level}": (cfg.augmentation_level > 0, "0.0"),
        f"data.crop={cfg.data.get('crop')}": (cfg.data.get("crop") is not None, "null"),
    }
    for setting, (clash, fitting) in clashes.items():
        if clash:
            raise UserError(
                f"{setting} does not go with low_resolution=null: a base stage enlarges no picture, and draws whole "
                f"ones; set {setting.split('=')[0]}={fitting}, or the low_resolution of a super-resolution stage"
            )


def _check_optimizer(cfg: DictConfig) -> None:
    """Raises: UserError if the optimizer does not take its settings, which it would say as late as training starts."""
    try:
        instantiate(cfg.lr_scheduler)(instantiate(cfg.optimizer)([nn.Parameter(torch.zeros(1))]))
    except UserError:
        raise
    except (ValueError, TypeError, ZeroDivisionError) as error:
        settings = {f"optimizer.{key}": value for key, value in cfg.optimizer.items() if not str(key).startswith("_")}
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise UserError(f"the optimizer refuses its settings: {error} ({shown})") from error


def check_crop(cfg: DictConfig, network: nn.Module) -> None:
    scale = 1 if cfg.low_resolution is None else cfg.resolution // cfg.low_resolution
    step = math.lcm(scale, cast(int, network.stride))
    crop = cfg.data.get("crop")
    if crop is not None and crop % step:
        raise UserError(
            f"data.crop={crop} must be a multiple of {step} pixels, which fits both the network's stride "
            f"({network.stride}) and the enlargement ({scale})"
        )


def check_text(cfg: DictConfig, network: nn.Module) -> None:
    """A network that reads text needs captions, and one that reads none is trained without any on purpose alone.

    Raises: UserError where captions come to a network that would not read them, or never to one that would, whose
    weights for text would stay as chance made them, and be switched on by the first prompt.
    """
    reads = cast(bool, cast(nn.Module, network.embedding).reads_text)
    if not reads and cfg.caption_dropout < 1:
        raise UserError(
            "the text would not be read: text_pooling adds nothing of it and no attention layer of the network reads "
            "it; choose text_pooling=attention or mean, or give a level attention to the text; for a stage that is to "
            "draw without any say caption_dropout=1.0 too"
        )
    if reads and cfg.caption_dropout == 1:
        raise UserError(
            "caption_dropout=1.0 leaves the network's weights for text untrained, and the first prompt would switch "
            "them on: take text_pooling=none and no attention to text too, or a smaller caption_dropout"
        )
