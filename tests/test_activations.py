"""What a forward pass keeps, in closed form; the plan's own tests hold it against torch's checkpoints."""

import torch
import torch.nn.functional as F
from torch import nn

from imagen.activations import Activations, width_of
from imagen.cli import compose


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def kept(network: nn.Module, x: torch.Tensor) -> int:
    activations = Activations(network)
    with activations:
        network(x)
    return activations.kept_bytes()["none"]


def test_convolutions_keep_what_they_read():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1))
        x = torch.zeros(1, 3, 16, 16)
    assert kept(network, x) == 4 * 16 * 16 * (3 + 8)


def test_attention_keeps_no_matrix():
    with torch.device("meta"):
        x = torch.zeros(1, 2, 4096, 8, requires_grad=True)
    assert kept(Attention(), x) < 4 * 4096 * 4096 / 10


def test_autocast_halves_it():
    assert width_of(compose("train", ["experiment=demo_base16"])) == 2
    assert width_of(compose("train", ["experiment=toy"])) == 1
