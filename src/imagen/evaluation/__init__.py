"""Pictures drawn by a trained cascade and measured, along any axes of sampling: what ``evaluate.py`` calls."""

from imagen.evaluation.command import evaluate, measure
from imagen.evaluation.paired import Paired, paired_difference

__all__ = ["Paired", "evaluate", "measure", "paired_difference"]
