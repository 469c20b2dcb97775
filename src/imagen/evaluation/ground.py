"""What all points of an evaluation share: the trained stages, their data, and what is drawn for which prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from omegaconf import DictConfig

from imagen import build
from imagen.errors import UserError
from imagen.evaluation.reference import read_folder, read_set
from imagen.metric.pictures import Pictures, PictureSet, made_small
from imagen.metric.retrieval import first_in_hash_order
from imagen.prompts import read_prompts_and_kinds
from imagen.runs import Weights, checksum, config_hash, read_weights
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
        self.read: list[Weights] = []
        """What each stage says of itself; its weights are let go of, since the cascade reads them for itself."""
        self.checksums: list[str] = []
        for weights in map(read_weights, build.sources_of(cfg.stages)):
            self.read.append(replace(weights, state={}))
            self.checksums.append(checksum(weights.state))
        self.names = slot_names([weights.config for weights in self.read])
        self.sides: list[int] = [weights.config["resolution"] for weights in self.read]
        if cfg.depth is not None and cfg.depth > len(self.read):
            raise UserError(f"depth={cfg.depth} is more than the {len(self.read)} stages given: give as many, or null")
        self.depth = len(self.read) if cfg.depth is None else cfg.depth
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
            return self.own.whole
        if self.cfg.reference == "heldout":
            return self.own.val
        return read_folder(self.cfg.reference, self.sides[self.depth - 1])

    @cached_property
    def stage(self) -> Stage:
        """The last stage measured, as its run samples."""
        stage = build.load_stage(read_weights(self.cfg.stages[self.depth - 1]), self.names[self.depth - 1])
        stage.denoiser.to(self.device)
        return stage

    def small(self, side: int) -> Pictures:
        """The held-out pictures at ``side`` pixels."""
        return made_small(self.own.val, side)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What of the stages decides the pictures."""
        return {
            "weights": self.checksums,
            "configs": [config_hash(weights.config) for weights in self.read],
        }

    @cached_property
    def prompts(self) -> Prompts:
        """Of the data set the first captions in hash order and all that were held out, unless the user names others.

        The sheet shows the first of either; of stages that only enlarge, held-out pictures.
        """
        cfg = self.cfg
        if not self.begins_with_noise:
            shown = self.own.val.captions[: cfg.num_heldout_prompts]
            return Prompts([], shown, [f"{said} (held out)" for said in shown], [])
        if cfg.prompts != "auto":
            named = read_prompts_and_kinds(cfg.prompts)
            texts = [prompt.text for prompt in named]
            shown = texts[: cfg.num_train_prompts + cfg.num_heldout_prompts]
            return Prompts(texts, shown, shown, [prompt.kind for prompt in named])
        # all captions of a large set are read only if some are to be drawn
        known = self.own.train.captions if cfg.num_measured or cfg.num_train_prompts else []
        trained, heldout = (first_in_hash_order(said, len(said)) for said in (known, self.own.val.captions))
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
