"""What travels between modules: text embeddings, conditioning, batches and predictions.

Axis letters, used in every annotation of the package:

- ``b`` batch, ``n`` text tokens, ``d`` text width, ``c`` channels, ``h w`` pixels, ``hl wl`` low-resolution pixels.

Ranges: pictures are uint8 in 0..255 outside the loss and float in [-1, 1] inside it. ``t`` runs from 0 (clean) to 1
(noise); ``logsnr = log(alpha^2 / sigma^2)`` is the only name a noise level has, with ``alpha^2 + sigma^2 = 1``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@dataclass
class TextEmbedding:
    """A frozen encoder's per-token hidden states, and which tokens are real (True) rather than padding."""

    tokens: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]

    def dropped(self, drop: Bool[Tensor, " b"]) -> "TextEmbedding":
        """Zero the tokens where ``drop`` is True; the mask stays the prompt's own (paper, section 4.1)."""
        return TextEmbedding(self.tokens.masked_fill(drop[:, None, None], 0.0), self.mask)

    def null(self) -> "TextEmbedding":
        """The unconditional twin: every token zero, the same mask."""
        return TextEmbedding(torch.zeros_like(self.tokens), self.mask)

    def to(self, device: torch.device | str) -> "TextEmbedding":
        return TextEmbedding(self.tokens.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))


@dataclass
class Conditioning:
    """All that a network sees beside ``x_t`` and its log-SNR.

    ``low_res`` is the picture that a super-resolution stage enlarges, at its own size, in [-1, 1] before its noise was
    added; ``low_res_logsnr`` is the level of that noise. Both are None for a base stage.
    """

    text: TextEmbedding
    low_res: Float[Tensor, "b 3 hl wl"] | None = None
    low_res_logsnr: Float[Tensor, " b"] | None = None

    def null_text(self) -> "Conditioning":
        return Conditioning(self.text.null(), self.low_res, self.low_res_logsnr)

    def concatenated(self, other: "Conditioning") -> "Conditioning":
        """Both, one after the other along the batch, so that one forward pass serves guidance's two halves."""
        assert (self.low_res is None) == (other.low_res is None)
        text = TextEmbedding(
            torch.cat([self.text.tokens, other.text.tokens]), torch.cat([self.text.mask, other.text.mask])
        )
        if self.low_res is None or other.low_res is None:
            return Conditioning(text)
        assert self.low_res_logsnr is not None
        assert other.low_res_logsnr is not None
        return Conditioning(
            text,
            torch.cat([self.low_res, other.low_res]),
            torch.cat([self.low_res_logsnr, other.low_res_logsnr]),
        )


@dataclass
class Batch:
    """One local batch as the loader hands it over.

    Pixels stay uint8 until they are on the device. ``can_flip`` is False where a caption speaks of left or right.
    """

    image: UInt8[Tensor, "b 3 h w"]
    text: TextEmbedding
    can_flip: Bool[Tensor, " b"]
    key: list[str]
    caption: list[str]

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on ``device``; pinned memory crosses without the host waiting."""
        image, can_flip = (tensor.to(device, non_blocking=True) for tensor in (self.image, self.can_flip))
        return Batch(image, self.text.to(device), can_flip, self.key, self.caption)

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory, as DataLoader asks for on its way to a GPU."""
        text = TextEmbedding(self.text.tokens.pin_memory(), self.text.mask.pin_memory())
        return Batch(self.image.pin_memory(), text, self.can_flip.pin_memory(), self.key, self.caption)


@dataclass
class Prediction:
    """What a denoiser says of ``x_t``.

    ``x0`` is what everything reads. ``renoise_x0``, where present, replaces it in computing the noise that a sampler
    adds back (CFG++); ``log_variance``, where present, is a learned reverse variance (Improved DDPM).
    """

    x0: Float[Tensor, "b 3 h w"]
    renoise_x0: Float[Tensor, "b 3 h w"] | None = None
    log_variance: Float[Tensor, "b 3 h w"] | None = None


Denoise = Callable[[Float[Tensor, "b 3 h w"], Float[Tensor, " b"], Conditioning], Prediction]
"""The hub: ``(x_t, logsnr, cond) -> Prediction``. A denoiser, or a denoiser wrapped in guidance and thresholding."""
