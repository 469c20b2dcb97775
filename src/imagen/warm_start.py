"""``init_from``: a network begins with the weights of another run, as far as they fit, and says what it took."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.resume import differences
from imagen.runs import read_weights

LEAST = 0.1
"""The share of a network's weights below which taking what fits is a mistake: a wrong path, another network."""

NAMED = 4
"""So many are named of a list."""


@torch.no_grad()
def take_weights(network: nn.Module, source: str | Path, config: dict[str, Any]) -> str:
    """Copy the averaged weights of a run folder, checkpoint or export into ``network``; say what was taken and left.

    Those fit that have the name and shape of one here. Buffers stay: they are of the run's own encoder, say. What of
    ``config``, the run's own, the others were not trained with is no error, and said.

    Raises: UserError if ``source`` is missing or damaged, or almost nothing of it fits.
    """
    try:
        there = read_weights(source)
    except UserError as error:
        raise UserError(f"init_from={source} cannot be taken: {error}") from error
    here = dict(network.named_parameters())
    fitting = {name for name, own in here.items() if name in there.state and there.state[name].shape == own.shape}
    taken, total = (sum(here[name].numel() for name in names) for names in (fitting, here))
    left = [_why(name, own, there.state) for name, own in here.items() if name not in fitting]
    unused = [name for name in there.state if name not in here and name not in dict(network.named_buffers())]
    if taken < LEAST * total:
        raise UserError(
            f"init_from={source} does not fit this network: of its weights {taken / total:.1%} have the name and shape "
            f"of one there (first that has not: {left[0]}); give a run of the same kind of network"
        )
    for name in fitting:
        here[name].copy_(there.state[name])
    name = there.config.get("name")
    lines = [
        f"init_from={source} ('{name}', step {there.step}): took {len(fitting)} of {len(here)} tensors, "
        f"{taken / total:.1%} of the weights"
    ]
    lines += _listed("left as they begin", left) + _listed("not used of it", unused)
    lines += _listed("trained otherwise", differences(there.config, config))
    return "\n".join(lines)


def _why(name: str, own: Tensor, there: dict[str, Tensor]) -> str:
    shape = _shape(own)
    return f"{name} ({shape} here, {_shape(there[name])} there)" if name in there else f"{name} ({shape}, not there)"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"  {what}: {', '.join(names[:NAMED])}{more}"]
