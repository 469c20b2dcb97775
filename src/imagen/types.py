"""What travels between modules: text embeddings, conditioning, batches and predictions.

Axis letters, used in every annotation of the package:

- ``b`` batch, ``n`` text tokens, ``d`` text width, ``c`` channels, ``h w`` pixels, ``hl wl`` low-resolution pixels.

Ranges: pictures are uint8 in 0..255 outside the loss and float in [-1, 1] inside it. ``t`` runs from 0 (clean) to 1
(noise); ``logsnr = log(alpha^2 / sigma^2)`` is the only name a noise level has, with ``alpha^2 + sigma^2 = 1``.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@dataclass
class TextEmbedding:
    """A frozen encoder's per-token hidden states, and which tokens are real (True) rather than padding.

    ``absent`` marks the prompts that a network is to take as no prompt at all, by default none of them; what it sees in
    their place is its null text's affair (``imagen.null_text``).
    """

    tokens: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    absent: Bool[Tensor, " b"] = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.absent is None:
            self.absent = torch.zeros(len(self.mask), dtype=torch.bool, device=self.mask.device)

    def dropped(self, drop: Bool[Tensor, " b"]) -> "TextEmbedding":
        """The same with the prompts where ``drop`` is True marked absent (paper, section 4.1)."""
        return TextEmbedding(self.tokens, self.mask, self.absent | drop)

    def rows(self, rows: "slice | list[int]") -> "TextEmbedding":
        """Those prompts alone, in that order."""
        return TextEmbedding(self.tokens[rows], self.mask[rows], self.absent[rows])

    def null(self) -> "TextEmbedding":
        """The unconditional twin: every prompt absent."""
        return TextEmbedding(self.tokens, self.mask, torch.ones_like(self.absent))

    def concatenated(self, other: "TextEmbedding") -> "TextEmbedding":
        """Both along the batch, the shorter one padded."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        parts = [part.padded(length) for part in (self, other)]
        return TextEmbedding(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.mask for part in parts]),
            torch.cat([part.absent for part in parts]),
        )

    def padded(self, length: int) -> "TextEmbedding":
        """The same with padding up to ``length`` tokens."""
        more = length - self.mask.shape[1]
        if more <= 0:
            return self
        return TextEmbedding(F.pad(self.tokens, (0, 0, 0, more)), F.pad(self.mask, (0, more)), self.absent)

    def to(self, device: torch.device | str) -> "TextEmbedding":
        return TextEmbedding(*(part.to(device, non_blocking=True) for part in (self.tokens, self.mask, self.absent)))


@dataclass
class Conditioning:
    """All that a network sees beside ``x_t`` and its log-SNR.

    ``low_res`` is the picture that a super-resolution stage enlarges, at its own size, in [-1, 1] before its noise was
    added; ``low_res_logsnr`` is the level of that noise. Both are None for a base stage. ``negative`` is what guidance
    leads away from where it is not simply no text.
    """

    text: TextEmbedding
    low_res: Float[Tensor, "b 3 hl wl"] | None = None
    low_res_logsnr: Float[Tensor, " b"] | None = None
    negative: TextEmbedding | None = None

    def null_text(self) -> "Conditioning":
        """Guidance's other half: the negative prompt, or no prompt; the same low-resolution picture."""
        return Conditioning(self.negative or self.text.null(), self.low_res, self.low_res_logsnr)

    def concatenated(self, other: "Conditioning") -> "Conditioning":
        """Both, one after the other along the batch, so that one forward pass serves guidance's two halves."""
        assert (self.low_res is None) == (other.low_res is None)
        text = self.text.concatenated(other.text)
        if self.low_res is None or other.low_res is None:
            return Conditioning(text)
        assert self.low_res_logsnr is not None
        assert other.low_res_logsnr is not None
        return Conditioning(
            text,
            torch.cat([self.low_res, other.low_res]),
            torch.cat([self.low_res_logsnr, other.low_res_logsnr]),
        )


@dataclass(frozen=True)
class Place:
    """Which rows of its step's global batch a local batch holds: ``first`` to ``first + count - 1`` of ``total``.

    ``full`` rows make a whole global batch; the last of an epoch may have fewer. ``count`` is 0 where that left a rank
    none: its local batch then has one row, which counts nothing.
    """

    first: int
    count: int
    total: int
    full: int

    def share(self, parts: int) -> float:
        """What a local mean is weighed with, so that the mean over a step's ``parts`` is its rows' sum over ``full``.

        So every sample counts the same over an epoch, in whatever batch and on whatever rank it is.
        """
        return self.count * parts / self.full


@dataclass
class Batch:
    """One local batch as the loader hands it over.

    Pixels stay uint8 until they are on the device. ``can_flip`` is False where a caption speaks of left or right.
    ``place`` is where its rows lie in the global batch, by default all there are.
    """

    image: UInt8[Tensor, "b 3 h w"]
    text: TextEmbedding
    can_flip: Bool[Tensor, " b"]
    key: list[str]
    caption: list[str]
    place: Place = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.place is None:
            self.place = Place(0, len(self), len(self), len(self))

    def __len__(self) -> int:
        return self.image.shape[0]

    @classmethod
    def joined(cls, parts: "Sequence[Batch]") -> "Batch":
        """The rows of all ``parts``, at least one, whose pictures are of one size; a batch by itself."""
        text = functools.reduce(TextEmbedding.concatenated, (part.text for part in parts))
        image, can_flip = torch.cat([part.image for part in parts]), torch.cat([part.can_flip for part in parts])
        keys, captions = [key for part in parts for key in part.key], [said for part in parts for said in part.caption]
        return cls(image, text, can_flip, keys, captions)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on ``device``; pinned memory crosses without the host waiting."""
        image, can_flip = (tensor.to(device, non_blocking=True) for tensor in (self.image, self.can_flip))
        return replace(self, image=image, text=self.text.to(device), can_flip=can_flip)

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory, as DataLoader asks for on its way to a GPU."""
        text = TextEmbedding(*(part.pin_memory() for part in (self.text.tokens, self.text.mask, self.text.absent)))
        return replace(self, image=self.image.pin_memory(), text=text, can_flip=self.can_flip.pin_memory())


@dataclass
class Prediction:
    """What a denoiser says of ``x_t``.

    ``x0`` is what everything reads. ``renoise_x0``, where present, replaces it in computing the noise that a sampler
    adds back (CFG++); ``gamma``, where present, is a learned reverse variance: per pixel, in [0, 1], where between its
    lower and its upper bound the log of the ancestral step's variance lies (Improved DDPM, arXiv 2102.09672, eq. 15).
    """

    x0: Float[Tensor, "b 3 h w"]
    renoise_x0: Float[Tensor, "b 3 h w"] | None = None
    gamma: Float[Tensor, "b 3 h w"] | None = None


Denoise = Callable[[Float[Tensor, "b 3 h w"], Float[Tensor, " b"], Conditioning], Prediction]
"""The hub: ``(x_t, logsnr, cond) -> Prediction``. A denoiser, or a denoiser wrapped in guidance and thresholding."""
