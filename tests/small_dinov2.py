"""A DINOv2 of a few thousand weights, written as ``transformers`` writes one."""

from pathlib import Path

import torch


def save_small_dinov2(folder: Path) -> Path:
    """Pictures of 28 px, class tokens of 8 numbers; its weights are large, so that no two pictures are alike to it."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        initializer_range=0.2,
    )
    Dinov2Model(config).eval().save_pretrained(folder)
    return folder
