"""Guidance away from a weaker network of the same stage rather than from no prompt."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.guidance.base import FindDenoiser, Guidance
from imagen.types import Conditioning, Denoise, Prediction


class AutoGuidance(Guidance):
    """``x0 = weak + weight (main - weak)``, both under the same conditioning (arXiv 2406.02507).

    ``checkpoint`` is the run folder or exported ``.safetensors`` of the weaker network: smaller, or trained less, but
    of the same sizes and text encoder. 1 is the main model alone. A negative prompt has no half to go to. Whether it
    fits is seen when the stage is built; its weights are loaded when the stage first samples, and so not by a training
    process that draws no grid.
    """

    @property
    def reads_null(self) -> bool:
        return False

    def __init__(self, *, checkpoint: str | None, weight: float) -> None:
        if not checkpoint:
            raise UserError(
                "guidance=autoguidance does not go with checkpoint=null: set guidance.checkpoint to the run folder or "
                "exported .safetensors of a weaker network of the same stage, or choose guidance=classifier_free"
            )
        self.checkpoint = checkpoint
        self.weight = weight
        self.weak: nn.Module | None = None
        self._load: Callable[[], nn.Module] | None = None

    def find(self, find_denoiser: FindDenoiser) -> None:
        self._load = find_denoiser(self.checkpoint)

    def to(self, device: torch.device | str) -> None:
        if self.weight == 1:
            return
        if self.weak is None:
            assert self._load is not None, "found when the stage is built"
            self.weak = self._load()
        self.weak.to(device)

    def __call__(self, denoise: Denoise) -> Denoise:
        if self.weight == 1:
            return denoise
        weak_denoise = self.weak
        assert weak_denoise is not None, "loaded by to()"

        def guided(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
            main, weak = denoise(x_t, logsnr, cond), weak_denoise(x_t, logsnr, cond)
            return Prediction(torch.lerp(weak.x0, main.x0, self.weight), gamma=main.gamma)

        return guided
