"""How much of a GPU's peak a stage reaches: as told, as benchmarks/train_step.py has measured it, or as aimed at."""

import json
from pathlib import Path

from omegaconf import DictConfig

from imagen.cli import CONF

RESULTS = CONF.parent / "benchmarks" / "results"


def utilisation(name: str, device: str, assumed: DictConfig, results: Path = RESULTS) -> tuple[float, str]:
    """The share of the dense bf16 peak in forward and backward, and how it is known.

    ``device`` is the GPU's name as CUDA gives it. What was measured is of whole steps, the update among them.
    """
    if assumed.utilisation is not None:
        return float(assumed.utilisation), "as given"
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        step = result["benchmarks"].get("train_step", {}).get(name, {}) if result["device"] == device else {}
        if step.get("utilisation"):
            return step["utilisation"], f"measured on {step['date']} at {step['batch_size']} pictures"
    return assumed.targets.get(name, min(assumed.targets.values())), "a target, not measured"
