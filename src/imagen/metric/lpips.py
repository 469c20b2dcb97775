"""LPIPS: how different two pictures look to a network (Zhang et al. 2018, arXiv 1801.03924), version 0.1 on AlexNet.

AlexNet's convolutions are written out here, since torchvision, which has them, must match the torch build; the learned
weights of the channels come with torchmetrics.
"""

import os
from importlib.resources import as_file, files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from imagen.errors import UserError, first_line
from imagen.metric.base import Subject
from imagen.metric.enlargement import EnlargementMetric
from imagen.ranges import Count
from imagen.runs import checksum

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""AlexNet's weights; a SHA-256 of the file begins with the digits in its name."""

HEADS = "functional/image/lpips_models/alex.pth"
LEAST = 32
"""Pixels a side: of fewer, nothing is left for the last convolutions."""

TAPS = (1, 4, 7, 9, 11)
"""The layers of ``AlexNet.features`` after whose ReLU pictures are compared."""


class LPIPS(EnlargementMetric):
    """``lpips``: the distance of a drawn picture from the real one; 0 is the same.

    ``weights``: the file of torchvision's AlexNet, ``alexnet-owt-7be5be79.pth``, or null to download it.
    """

    name = "lpips"
    needs_truth = True

    def __init__(self, *, weights: str | None, batch_size: Count) -> None:
        super().__init__(batch_size=batch_size)
        self.weights = weights
        self._network: PerceptualDistance | None = None

    def measure(self, subject: Subject) -> dict[str, float]:
        self._network = PerceptualDistance(load_alexnet(self.weights), load_heads()).to(self.device)
        return super().measure(subject)

    def of_batch(self, drawn: UInt8[Tensor, "n 3 h w"], other: UInt8[Tensor, "n 3 h2 w2"]) -> Float[Tensor, " n"]:
        assert self._network is not None
        if min(drawn.shape[-2:]) < LEAST:
            raise UserError(f"lpips needs pictures of {LEAST} px and more, and these have {min(drawn.shape[-2:])}")
        return self._network(drawn, other)

    def provenance(self) -> dict[str, str | int | float]:
        weights = "" if self._network is None else checksum(self._network.state_dict())
        return {"extractor": "AlexNet, LPIPS 0.1", "weights": weights, "resize": "none"}


class PerceptualDistance(nn.Module):
    """The squared difference of unit feature vectors, weighted by channel, meaned over places, summed over layers."""

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, heads: list[Float[Tensor, " _"]]) -> None:
        super().__init__()
        self.features = features.requires_grad_(False).eval()
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head.view(1, -1, 1, 1))
        # ImageNet's colours for pictures in [-1, 1], rounded as LPIPS has them
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))

    def forward(self, a: UInt8[Tensor, "n 3 h w"], b: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        distance = torch.zeros(len(a), device=a.device)
        x, y = ((pictures.float() / 127.5 - 1 - self.shift) / self.scale for pictures in (a, b))
        for i, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if i in TAPS:
                head = self.get_buffer(f"head{TAPS.index(i)}")
                distance += (head * (_unit(x) - _unit(y)).square()).sum(dim=1).mean(dim=(1, 2))
        return distance


def alexnet_features() -> nn.Sequential:
    """The convolutions of AlexNet in one column (Krizhevsky 2014, arXiv 1404.5997), up to the last that is compared."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


def load_alexnet(weights: str | None) -> nn.Sequential:
    """Its convolutions with the weights of a file. Raises: UserError if the file is missing or another network's."""
    remedy = f"give metric.lpips.weights=, the file {os.path.basename(URL)} of download.pytorch.org/models"
    try:
        if weights is None:
            state: Any = torch.hub.load_state_dict_from_url(URL, map_location="cpu", check_hash=True, weights_only=True)
        else:
            state = torch.load(Path(weights).expanduser(), map_location="cpu", weights_only=True)
        features = {key.removeprefix("features."): value for key, value in state.items() if "features." in key}
        network = alexnet_features()
        network.load_state_dict(features)
    except OSError as error:
        where = "cannot be downloaded" if weights is None else f"cannot be read from weights={weights}"
        raise UserError(f"AlexNet's weights {where} ({error}): {remedy}") from error
    except (RuntimeError, AttributeError, EOFError, UnpicklingError) as error:
        raise UserError(f"weights={weights} is no AlexNet ({first_line(error)}): {remedy}") from error
    return network


def load_heads() -> list[Float[Tensor, " _"]]:
    """The learned weight of each channel, layer by layer."""
    with as_file(files("torchmetrics") / HEADS) as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(TAPS))]


def _unit(features: Tensor) -> Tensor:
    return features / (1e-8 + features.square().sum(dim=1, keepdim=True)).sqrt()
