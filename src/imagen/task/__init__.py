"""What a cascade is asked to draw: pictures from noise, or something of a user's own picture."""

from imagen.task.base import Generate, Task
from imagen.task.image_to_image import ImageToImage
from imagen.task.inpaint import Inpaint
from imagen.task.travel import Travel
from imagen.task.upscale import Upscale

__all__ = ["Generate", "ImageToImage", "Inpaint", "Task", "Travel", "Upscale"]
