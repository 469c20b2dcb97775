"""Painting part of a picture anew: the rest of it is put back, as noisy as the sample, at every step."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from imagen.errors import UserError
from imagen.sampler import OnStep, Sampler, noise_like
from imagen.schedule import diffuse, renoise
from imagen.task.base import Task, Walk
from imagen.task.picture import Source, mask_at, open_user_picture, picture_at
from imagen.types import Conditioning, Denoise


class Inpaint(Task):
    """RePaint (arXiv 2201.09865, algorithm 1) at every stage: the mask's white (or transparent) part is painted.

    After each step the known part becomes the given picture, diffused to the new level. To let the two parts agree,
    every stretch of a share ``jump`` of the stage's steps is walked ``resample`` times (the paper: 10 times 10 of 250):
    its end is noised back to its beginning. The finished known part is the given picture to the bit. Samplers go one
    step at a time, so those that learn from the steps before go at order 1. Raises: UserError on unusable pictures.
    """

    prompts: ClassVar[str | list[str]] = [""]

    def __init__(self, *, image: Source | None, mask: Source | None, resample: int, jump: float) -> None:
        if resample < 1:
            raise UserError(f"resample={resample} must be at least 1 (every step once, no jumps back)")
        if not 0 < jump <= 1:
            raise UserError(f"jump={jump} must be above 0 and at most 1: the share of the steps to jump back over")
        self.image = open_user_picture("image", image)
        self.mask = open_user_picture("mask", mask)
        self.resample = resample
        self.jump = jump
        _check(self.image, self.mask)

    def num_steps(self, num_steps: int) -> int:
        return self.resample * num_steps

    def walk(self, sampler: Sampler) -> Walk:
        length = max(1, round(self.jump * sampler.num_steps))

        def walked(
            denoise: Denoise,
            x: Float[Tensor, "b 3 h w"],
            logsnr_grid: Float[Tensor, " s"],
            cond: Conditioning,
            generators: list[torch.Generator],
            on_step: OnStep | None = None,
        ) -> Float[Tensor, "b 3 h w"]:
            rows = logsnr_grid.to(x.device, torch.float32)[:, None].expand(-1, len(x))
            known, paint = self._known(x)
            for first in range(0, len(logsnr_grid) - 1, length):
                stretch = range(first, min(first + length, len(logsnr_grid) - 1))
                for left in reversed(range(self.resample)):
                    for i in stretch:
                        x = sampler(denoise, x, logsnr_grid[i : i + 2], cond, generators, on_step)
                        x = torch.where(paint, x, diffuse(known, noise_like(x, generators), rows[i + 1]))
                    if left:
                        x = renoise(x, noise_like(x, generators), rows[stretch.stop], rows[first])
            return x

        return walked

    def _known(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "1 1 h w"]]:
        height, width = x.shape[2:]
        known = picture_at(self.image, height, width).to(x.device).expand_as(x)
        return known, mask_at(self.mask, height, width).to(x.device)


def _check(image: Image.Image, mask: Image.Image) -> None:
    """Refuse a mask that is not the picture's, up to the rounding of its size, or that leaves nothing to paint."""
    if abs(mask.width * image.height - mask.height * image.width) > max(*image.size, *mask.size):
        raise UserError(
            f"mask of {mask.width}x{mask.height} pixels is not of the shape of image, {image.width}x{image.height}: "
            "give a mask of the picture's size or a multiple of it"
        )
    if mask.convert("L").getextrema()[1] < 128:  # type: ignore[operator]
        raise UserError("mask has no white, so there is nothing to paint: make white what is to be painted")
