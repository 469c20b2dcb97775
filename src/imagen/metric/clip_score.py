"""CLIP score: how near a picture is to its caption (Hessel et al. 2021, arXiv 2104.08718), as the paper measures it."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError, first_line
from imagen.metric.base import Direction, PictureMetric
from imagen.metric.extractor import CLIP_MEAN, CLIP_STD, to_square
from imagen.metric.pictures import Pictures
from imagen.ranges import Count
from imagen.runs import checksum


class CLIPScore(PictureMetric):
    """``clip_score``: the mean cosine of drawn pictures with their captions, and ``clip_score_real`` of the real ones.

    Cosines as they are, 0.2 to 0.35 for good pictures: neither cut at zero nor scaled by 2.5 or 100 as elsewhere.
    ``path`` names any CLIP, on the hub or in a folder; pictures are resized whole to its own size. Captions are cut at
    the model's 77 tokens.
    """

    by_prompt = True

    def __init__(self, *, path: str, batch_size: Count) -> None:
        self.path, self.batch_size = path, batch_size
        self._weights = ""
        self._values = torch.empty(0)
        self._real = 0

    @torch.inference_mode()
    def __call__(self, drawn: Pictures, reference: Pictures) -> dict[str, float]:
        model, tokenizer = load_clip(self.path)
        model = model.to(self.device)
        self._weights = checksum(model.state_dict())
        self._values = self._cosines(drawn, model, tokenizer)
        figures = {"clip_score": self._values.mean().item()}
        self._real = len(reference) if any(reference.captions) else 0
        if self._real:
            figures["clip_score_real"] = self._cosines(reference, model, tokenizer).mean().item()
        return figures

    def directions(self) -> dict[str, Direction]:
        return {"clip_score": "higher"}

    def values(self) -> dict[str, Float[Tensor, " _"]]:
        return {"clip_score": self._values}

    def counts(self) -> dict[str, int]:
        return {**super().counts(), "clip_score_real": self._real}

    def _cosines(self, pictures: Pictures, model: Any, tokenizer: Any) -> Float[Tensor, " _"]:
        cosines, done = [], 0
        for batch in pictures.batches(self.batch_size):
            captions = list(pictures.captions[done : done + len(batch)])
            done += len(batch)
            words = tokenizer(captions, padding=True, truncation=True, max_length=77, return_tensors="pt")
            output = model(pixel_values=self._pixels(batch, model), **words.to(self.device))
            cosines.append(F.cosine_similarity(output.image_embeds, output.text_embeds, dim=-1).double().cpu())
        return torch.cat(cosines)

    def _pixels(self, batch: Tensor, model: Any) -> Tensor:
        # handed over as the network itself takes them: processors divide by 255 what is in [0, 1] already
        pixels = to_square(batch.to(self.device), model.config.vision_config.image_size)
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        return (pixels - mean) / std

    def provenance(self) -> dict[str, str | int | float]:
        return {"extractor": self.path, "weights": self._weights, "resize": "bicubic to the model's own size"}


def load_clip(path: str) -> tuple[Any, Any]:
    """A CLIP and its tokenizer. Raises: UserError if there is no such model."""
    from transformers import AutoTokenizer, CLIPModel

    try:
        model: Any = CLIPModel.from_pretrained(path, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"path={path} is no CLIP that can be loaded ({first_line(error)}): give a model's name on the "
            "hub, or a folder that holds its config.json, model.safetensors and tokenizer"
        ) from error
    return model.requires_grad_(False).eval(), tokenizer
