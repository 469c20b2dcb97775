"""Which of two models do people prefer? The paper's side-by-side comparison (section 3), as a page and a report."""

from imagen.human_eval.build import build_study
from imagen.human_eval.report import write_report

__all__ = ["build_study", "write_report"]
