"""How much of a GPU's peak a stage reaches: as told, as benchmarks/train_step.py has measured it, or as aimed at."""

import json
from pathlib import Path

from omegaconf import DictConfig

from imagen.cli import CONF

RESULTS = CONF.parent / "benchmarks" / "results"


def utilisation(name: str, device: str, assumed: DictConfig, results: Path = RESULTS) -> tuple[float, str]:
    """The share of the dense bf16 peak in forward and backward, and how it is known.

    ``device`` is the GPU's name as CUDA gives it. What was measured is of whole steps, the update among them; of steps
    compiled and not, the better.
    """
    if assumed.utilisation is not None:
        return float(assumed.utilisation), "as given"
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        steps = result["benchmarks"].get("train_step", {}) if result["device"] == device else {}
        cases = {case: steps[case] for case in (name, f"{name} compiled") if steps.get(case, {}).get("utilisation")}
        if cases:
            case = max(cases, key=lambda case: cases[case]["utilisation"])
            step, how = cases[case], case.removeprefix(name)
            return step["utilisation"], f"measured on {step['date']} at {step['batch_size']} pictures{how}"
    return assumed.targets.get(name, min(assumed.targets.values())), "a target, not measured"
