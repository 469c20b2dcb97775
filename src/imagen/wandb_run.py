"""How a run is called in W&B: one group a sweep or experiment, a job type a stage, what was asked for as tags."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from imagen.runs import RunFolder

LONGEST = 64
"""Characters that W&B takes of a tag."""


def named(node: DictConfig, cfg: DictConfig, run: RunFolder) -> DictConfig:
    """The logger's settings with what they leave to us: a run that goes on is told by its folder."""
    node = node.copy()
    node.id = node.id or f"{cfg.name}-{run.path.name}"
    node.group = node.group or cfg.sweep or cfg.name
    node.job_type = node.job_type or ("base" if cfg.low_resolution is None else f"sr{cfg.resolution}")
    asked = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    node.tags = [*node.tags, *(tag[:LONGEST] for tag in asked)]
    return node
