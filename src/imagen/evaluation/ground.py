"""What all points of an evaluation share: the trained stages, their data, and what is drawn for which prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import UInt8
from omegaconf import DictConfig
from torch import Tensor

from imagen import build
from imagen.data.pixels import downsample, to_float, to_uint8
from imagen.errors import UserError
from imagen.evaluation.reference import read_folder, read_set
from imagen.metric.pictures import Pictures, PictureSet
from imagen.metric.retrieval import first_in_hash_order
from imagen.prompts import read_prompts_and_kinds
from imagen.runs import checksum, config_hash, read_weights
from imagen.slots import slot_names
from imagen.stage import Stage

LOWRES = ("samples", "real", "both")


@dataclass(frozen=True)
class Prompts:
    """What is drawn: ``measured`` through the measured stages; ``shown`` through all, each with its label.

    ``kinds[i]`` is the kind that the set of ``measured[i]`` counts it to, '' where there are none.
    """

    measured: Sequence[str]
    shown: Sequence[str]
    labels: Sequence[str]
    kinds: Sequence[str]


class Ground:
    """The stages of ``cfg.stages``, of which the first ``depth`` are measured."""

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        """Raises: UserError if a stage cannot be read, or ``cfg.lowres`` does not suit them."""
        self.cfg, self.device = cfg, device
        self.read = [read_weights(source) for source in cfg.stages]
        self.names = slot_names([weights.config for weights in self.read])
        self.sides: list[int] = [weights.config["resolution"] for weights in self.read]
        self.depth = len(self.read) if cfg.depth is None else min(cfg.depth, len(self.read))
        self.config = DictConfig({**self.read[self.depth - 1].config, "text_encoder": cfg.text_encoder})
        self._check_lowres()

    def _check_lowres(self) -> None:
        if self.cfg.lowres not in LOWRES:
            raise UserError(f"lowres={self.cfg.lowres} is none of {', '.join(LOWRES)}")
        if self.draws_samples and not self.begins_with_noise:
            raise UserError(
                "stages begins with a super-resolution stage, which draws nothing from noise: put its base stage "
                "first, or give lowres=real"
            )
        if self.enlarges_real and self.config.low_resolution is None:
            raise UserError(
                f"lowres={self.cfg.lowres} is of super-resolution, and the last stage measured is a base stage: give "
                "depth=2, or lowres=samples"
            )

    @property
    def begins_with_noise(self) -> bool:
        return self.read[0].config.get("low_resolution") is None

    @property
    def draws_samples(self) -> bool:
        """Whether pictures are drawn from noise for the prompts."""
        return self.cfg.lowres != "real"

    @property
    def enlarges_real(self) -> bool:
        """Whether held-out pictures, made small, are enlarged by the last stage measured."""
        return self.cfg.lowres != "samples"

    @cached_property
    def own(self) -> PictureSet:
        """The data set of the last stage measured, at its resolution. Raises: UserError where it is not there."""
        judge = build.build_encoder(DictConfig({"text_encoder": self.cfg.judge}))
        return read_set(build.build_data(self.config), build.build_encoder(self.config), judge)

    @cached_property
    def reference(self) -> Pictures:
        """The real pictures. Raises: UserError where they are not there."""
        if self.cfg.reference == "auto":
            return self.own
        return read_folder(self.cfg.reference, self.sides[self.depth - 1])

    @cached_property
    def stage(self) -> Stage:
        """The last stage measured, as its run samples."""
        stage = build.load_stage(self.read[self.depth - 1], self.names[self.depth - 1])
        stage.denoiser.to(self.device)
        return stage

    @cached_property
    def heldout(self) -> tuple[UInt8[Tensor, "v 3 h w"], list[str]]:
        """The held-out pictures with their captions. Raises: UserError where there are none."""
        rows = list(self.own.val)
        if not rows:
            raise UserError(f"lowres={self.cfg.lowres} enlarges held-out pictures, and the data has none")
        return self.own.images[rows], [self.own.captions[i] for i in rows]

    def made_small(self, side: int) -> UInt8[Tensor, "v 3 {side} {side}"]:
        """The held-out pictures at ``side`` pixels, by block means, rounded to bytes as in a file."""
        pictures = self.heldout[0]
        return to_uint8(downsample(to_float(pictures), pictures.shape[-1] // side))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What of the stages decides the pictures."""
        return {
            "stages": [str(source) for source in self.cfg.stages],
            "weights": [checksum(weights.state) for weights in self.read],
            "configs": [config_hash(weights.config) for weights in self.read],
        }

    @cached_property
    def prompts(self) -> Prompts:
        """Of the data set the first captions in hash order and all that were held out, unless the user names others.

        The sheet shows the first of either; of stages that only enlarge, held-out pictures.
        """
        cfg = self.cfg
        if not self.begins_with_noise:
            shown = self.heldout[1][: cfg.num_heldout_prompts]
            return Prompts([], shown, [f"{said} (held out)" for said in shown], [])
        if cfg.prompts != "auto":
            named = read_prompts_and_kinds(cfg.prompts)
            texts = [prompt.text for prompt in named]
            shown = texts[: cfg.num_train_prompts + cfg.num_heldout_prompts]
            return Prompts(texts, shown, shown, [prompt.kind for prompt in named])
        own = self.own
        trained, heldout = (
            first_in_hash_order((own.captions[i] for i in rows), len(rows)) for rows in (own.train, own.val)
        )
        sheet = [*trained[: cfg.num_train_prompts], *heldout[: cfg.num_heldout_prompts]]
        labels = [said if i < cfg.num_train_prompts else f"{said} (held out)" for i, said in enumerate(sheet)]
        measured = [*trained[: cfg.num_measured], *heldout]
        return Prompts(measured, sheet, labels, [""] * len(measured))

    def sampling(self, cfg: DictConfig) -> dict[str, dict[str, Any]]:
        """How each measured stage draws under ``cfg``, in the few words that belong beside a figure."""
        said = {}
        for name, weights in list(zip(self.names, self.read, strict=True))[: self.depth]:
            slot = cfg[name]
            level = slot.get("augmentation_level")
            said[name] = {
                "guidance": _class_of(slot.guidance),
                "weight": slot.guidance.get("weight"),
                "sampler": _class_of(slot.sampler),
                "steps": slot.sampler.get("num_steps"),
                "spacing": _class_of(slot.spacing),
                "threshold": _class_of(slot.threshold),
                "augmentation_level": None
                if weights.config["low_resolution"] is None
                else (weights.config["augmentation_level"] if level is None else level),
            }
        return said


def _class_of(node: DictConfig) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2]
