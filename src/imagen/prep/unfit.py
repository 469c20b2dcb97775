"""What cannot be a sample, and why."""

from typing import Any


class Unfit(Exception):
    """``reason`` is one of few, and counted; ``detail`` says more of this one picture."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail

    def row(self, key: str, source: dict[str, Any]) -> dict[str, Any]:
        """The parquet's row of a picture left out, of which nothing is known but where it came from."""
        said = {"status": "dropped", "error_message": self.reason, "detail": self.detail}
        return {"key": key} | source | said
