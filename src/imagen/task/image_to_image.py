"""Something like a picture: sampling begins at the picture itself, noised part of the way."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.schedule import diffuse
from imagen.task.base import Task
from imagen.task.picture import Source, open_user_picture, picture_at


class ImageToImage(Task):
    """Sampling from the picture noised to ``strength``, a time of the stage's schedule: SDEdit, arXiv 2108.01073.

    Near 0 the picture stays, at 1 nothing of it does. ``sr_strength`` is that of super-resolution stages: the same, as
    in DeepFloyd IF, keeps the picture's own detail; 1 draws the detail anew. Without a prompt and with several samples
    it gives variations. Raises: UserError on an unusable picture or a strength outside (0, 1].
    """

    prompts: ClassVar[str | list[str]] = [""]

    def __init__(self, *, image: Source | None, strength: float, sr_strength: float) -> None:
        for name, value in {"strength": strength, "sr_strength": sr_strength}.items():
            if not 0 < value <= 1:
                raise UserError(f"{name}={value} must be above 0 (the picture itself) and at most 1 (noise alone)")
        self.image = open_user_picture("image", image)
        self._strength, self._sr_strength = float(strength), float(sr_strength)

    def strength(self, enlarging: bool) -> float:
        return self._sr_strength if enlarging else self._strength

    def start(self, noise: Float[Tensor, "b 3 h w"], logsnr: float) -> Float[Tensor, "b 3 h w"]:
        picture = picture_at(self.image, *noise.shape[2:]).to(noise.device)
        return diffuse(picture.expand_as(noise), noise, noise.new_full((len(noise),), logsnr))
