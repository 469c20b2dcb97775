"""What a config may name: a config travels inside weights, and so may come from anyone."""

from types import FunctionType
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from imagen.errors import UserError

CHOICES = (
    "callback",
    "conditioning_augmentation",
    "data",
    "ema",
    "group_norm",
    "guidance",
    "metric",
    "network",
    "null_text",
    "parameterization",
    "recompute",
    "safety",
    "sampler",
    "schedule",
    "spacing",
    "strategy",
    "task",
    "text_encoder",
    "text_pooling",
    "threshold",
    "weighting",
)
"""The choices: a folder of conf/, a module of this package, and a test each."""

ALLOWED_TARGETS = (
    *(f"imagen.{choice}." for choice in CHOICES),
    "imagen.adafactor.",
    "torch.optim.",
    "lightning.pytorch.",
    "lightning.Trainer",
    "transformers.get_",
)
"""What a config may name. A config travels inside weights, and so may come from anyone."""

HOMES = (
    *(f"imagen.{choice}" for choice in CHOICES),
    "imagen.adafactor",
    "torch.optim",
    "lightning.pytorch",
    "transformers.optimization",
)
"""Where what it names must have been defined: ``imagen.data.module.os.system`` begins well and ends badly."""


def find_target(node: DictConfig) -> Any:
    """The class or function that ``node`` names.

    Raises: UserError unless it is defined where options are, and ``node`` hands it keywords alone.
    """
    target = str(node.get("_target_"))
    if not target.startswith(ALLOWED_TARGETS):
        raise UserError(f"_target_={target} is not allowed in a config; it must begin with one of {ALLOWED_TARGETS}")
    try:
        found = hydra.utils.get_object(target)
    except (ImportError, AttributeError, ValueError, InstantiationException) as error:
        raise UserError(f"_target_={target} does not exist: it is misspelt, damaged or of another version") from error
    home = getattr(found, "__module__", None) or ""
    if not (callable(found) and any(home == allowed or home.startswith(f"{allowed}.") for allowed in HOMES)):
        raise UserError(f"_target_={target} is not allowed in a config; it is defined in {home or 'no module'}")
    if isinstance(found, FunctionType) and home.startswith("imagen."):
        raise UserError(f"_target_={target} is not allowed in a config; it is a function, and options are classes")
    special = {str(key) for key in node if str(key).startswith("_")} - {"_target_", "_partial_"}
    if special:
        raise UserError(f"{', '.join(sorted(special))} beside _target_={target} is not allowed in a config")
    return found
