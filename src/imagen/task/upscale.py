"""Super-resolution alone, on a user's picture."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from imagen.task.base import Task
from imagen.task.picture import Source, open_user_picture, picture_at


class Upscale(Task):
    """The stages are super-resolution stages alone; the first is given the user's picture (paper, section 2.4).

    The picture is cut and resized to what that stage was trained to enlarge, so give a picture near that size.
    Raises: UserError on an unusable picture.
    """

    prompts: ClassVar[str | list[str]] = [""]

    def __init__(self, *, image: Source | None) -> None:
        self.image = open_user_picture("image", image)

    def low_res(self, height: int, width: int) -> Float[Tensor, "1 3 {height} {width}"]:
        return picture_at(self.image, height, width)
