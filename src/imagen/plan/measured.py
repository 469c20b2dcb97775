"""How much of a GPU's peak a stage reaches: as told, as measured by benchmarks/train_step.py, or as aimed at."""

from omegaconf import DictConfig


def utilisation(name: str, gpu: str, assumed: DictConfig) -> tuple[float, str]:
    """The share of the dense bf16 peak in forward and backward, and how it is known."""
    if assumed.utilisation is not None:
        return assumed.utilisation, "as given"
    return assumed.targets.get(name, min(assumed.targets.values())), "a target, not measured"
