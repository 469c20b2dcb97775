"""Networks that turn pictures into features: what Fréchet and kernel distances compare.

Each takes uint8 pictures of any size and resizes them itself, since the resize is a part of the number: FID moves by 6
and more with it. None loads weights before it is first asked for features, and none of them trains.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from imagen.errors import UserError, first_line
from imagen.metric.pictures import Pictures
from imagen.runs import checksum

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The colours that CLIP was trained with (Radford et al. 2021, arXiv 2103.00020, and its released preprocessing)."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RESIZES = ("legacy", "clean", "torchmetrics")
INCEPTION_SIZE = 299


class Extractor(nn.Module, ABC):
    """Pictures to features [b d]."""

    num_features: int

    @abstractmethod
    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def identity(self) -> dict[str, str | int | float]:
        """Its name and the hash of its weights: figures by other ones are not comparable."""
        return {"extractor": type(self).__name__, "weights": checksum(self.state_dict())}


class PixelComponents(Extractor):
    """The first ``count`` principal components of ``pictures``' pixels in [-1, 1]; larger ones are averaged to 32 px.

    An extractor without weights, for machines and sets too small for any other. The basis is that of the real
    pictures, of large sets of the first 20,480, so that every model measured against them is measured along the same
    axes.
    """

    SIDE = 32
    BATCHES = 20
    mean: Tensor
    basis: Tensor

    def __init__(self, pictures: Pictures, count: int) -> None:
        """Raises: UserError if there are not more pictures than components."""
        super().__init__()
        if len(pictures) <= count:
            raise UserError(
                f"components={count} needs more than {len(pictures)} real pictures: take fewer, "
                f"metric.fd_pixel.components={max(1, len(pictures) // 2)} say"
            )
        rows = torch.cat([self._pixels(batch) for batch in itertools.islice(pictures.batches(1024), self.BATCHES)])
        mean = rows.mean(dim=0)
        with torch.random.fork_rng(devices=[]):  # the search begins at random, always the same
            torch.manual_seed(0)
            basis = torch.svd_lowrank(rows - mean, q=min(count + 16, *rows.shape), niter=6)[2][:, :count]
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.num_features = basis.shape[1]

    def identity(self) -> dict[str, str | int | float]:
        return {**super().identity(), "resize": f"block means to {self.SIDE} px"}

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return (self._pixels(images) - self.mean) @ self.basis

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = images.float() / 127.5 - 1
        if max(pixels.shape[-2:]) > self.SIDE:
            pixels = F.interpolate(pixels, size=(self.SIDE, self.SIDE), mode="area")
        return pixels.flatten(1)


class Inception(Extractor):
    """The 2,048 pooled features of the Inception network of FID, from ``weights``, a file, or null: downloaded.

    ``resize`` to 299 px is ``legacy`` (TensorFlow 1's bilinear, as in the paper's time), ``clean`` (Pillow's bicubic in
    floats: Parmar et al. 2022, arXiv 2104.11222; then bytes, which alone the network takes, where their clean-fid keeps
    the floats) or ``torchmetrics`` (antialiased bilinear).
    """

    num_features = 2048

    def __init__(self, weights: str | None, resize: str) -> None:
        """Raises: UserError if ``resize`` is none of these, torch-fidelity or the file is missing, or it is damaged."""
        super().__init__()
        if resize not in RESIZES:
            raise UserError(f"resize={resize} is not a way to 299 px: give one of {', '.join(RESIZES)}")
        if weights is not None and not Path(weights).expanduser().is_file():
            raise UserError(f"weights={weights} of the Inception network does not exist: give its file, or null")
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.resize = resize
        try:
            self.network = NoTrainInceptionV3(
                "inception-v3-compat",
                ["2048"],
                None if weights is None else str(Path(weights).expanduser()),
                antialias=resize == "torchmetrics",
            )
        except ModuleNotFoundError as error:
            raise UserError(
                "FID needs the Inception network of torch-fidelity: pip install 'imagen-lab[eval]'"
            ) from error
        except OSError as error:
            raise UserError(
                f"the Inception network's weights cannot be downloaded ({error}): give weights=, the file "
                "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release"
            ) from error
        except (RuntimeError, AttributeError, EOFError, UnpicklingError) as error:
            raise UserError(
                f"weights={weights} is no Inception network, or damaged ({first_line(error)}): give the file "
                "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release"
            ) from error

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        if self.resize == "clean":
            images = pillow_bicubic(images, INCEPTION_SIZE)
        return self.network(images)

    def identity(self) -> dict[str, str | int | float]:
        return {**super().identity(), "resize": self.resize}


class VisionTransformer(Extractor):
    """The image embedding of a CLIP or DINOv2 model of ``transformers``, by name or folder, at ``size`` pixels.

    CLIP's is the projected embedding; DINOv2's the class token after the last norm, as in FD-DINOv2 (Stein et al. 2023,
    arXiv 2306.04675). Pictures are resized by antialiased bicubic filtering, whole, to a square.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Raises: UserError if there is no such model."""
        super().__init__()
        self.path, self.size = path, size
        self.network = load_vision_model(path)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        config = cast(Any, self.network).config
        self.num_features = getattr(config, "projection_dim", None) or config.hidden_size

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        network = cast(Any, self.network)
        run = getattr(network, "get_image_features", network)  # CLIP's, with its projection
        return run(pixel_values=(to_square(images, self.size) - self.mean) / self.std).pooler_output

    def identity(self) -> dict[str, str | int | float]:
        return {**super().identity(), "extractor": self.path, "resize": f"bicubic {self.size}"}


def to_square(images: UInt8[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Pictures in [0, 1], resized whole by antialiased bicubic filtering."""
    pixels = images.float() / 255
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def load_vision_model(path: str) -> nn.Module:
    """A CLIP, or another model of ``transformers`` that sees, frozen. Raises: UserError if there is no such model."""
    from transformers import AutoModel

    try:
        network: Any = AutoModel.from_pretrained(path, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"path={path} is no vision model that can be loaded ({first_line(error)}): give a model's name on "
            "the hub, or a folder that holds its config.json and model.safetensors"
        ) from error
    return network.requires_grad_(False).eval()


def pillow_bicubic(images: Tensor, side: int) -> Tensor:
    """Channel by channel in floats: the resize of "clean" FID (arXiv 2104.11222), but rounded to bytes at the end."""
    resized = torch.empty(*images.shape[:2], side, side)
    for i, picture in enumerate(images.cpu()):
        for c, channel in enumerate(picture):
            whole = Image.fromarray(channel.float().numpy())
            resized[i, c] = torch.from_numpy(np.array(whole.resize((side, side), Image.Resampling.BICUBIC)))
    return resized.clamp(0, 255).round().to(images)
