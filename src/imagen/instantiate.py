"""A node of a config becomes an object here and nowhere else: the only file that calls Hydra's ``instantiate``."""

from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from imagen.cli import as_overrides
from imagen.errors import UserError
from imagen.targets import find_target


def instantiate(node: DictConfig, *runtime: Any, **named: Any) -> Any:
    """Build the object that ``node`` describes, handing it ``runtime`` objects in front of its hyperparameters.

    Raises: UserError if its ``_target_`` is not one this project builds from, or if its keys do not fit.
    """
    target = str(node.get("_target_"))
    find_target(node)
    try:
        return hydra.utils.instantiate(node, *runtime, **named, _convert_="all", _recursive_=False)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        if isinstance(cause, ValueError | TypeError | MisconfigurationException):
            raise UserError(f"{target} cannot be built: {' '.join(str(cause).split())}") from error
        raise


def picked_by(choice: str, cfg: DictConfig) -> str:
    """How the user picks the option that ``cfg`` has of a choice, ``sampler=heun`` say: for sentences that name it."""
    return as_overrides(choice, cfg[choice])[0]
