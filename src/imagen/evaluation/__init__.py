"""Pictures drawn by a trained cascade and measured, along any axes of sampling: what ``evaluate.py`` calls."""

from imagen.evaluation.command import evaluate, measure

__all__ = ["evaluate", "measure"]
