"""What a sweep showed: one table, the paper's figure, the same prompts side by side, and a verdict on its claim."""

from imagen.report.command import write_report
from imagen.report.gather import Row, Sweep, gather, read_sweep

__all__ = ["Row", "Sweep", "gather", "read_sweep", "write_report"]
