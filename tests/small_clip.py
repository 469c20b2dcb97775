"""A CLIP of a few thousand weights, written as ``transformers`` writes one, with a tokenizer of letters."""

import json
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_small_clip(folder: Path) -> Path:
    """Pictures of 16 px, embeddings of 12 numbers."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": words.index("<|startoftext|>"), "eos_token_id": words.index("<|endoftext|>")}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(words), "max_position_embeddings": 77},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).eval().save_pretrained(folder)
    return folder
