"""Points of a sweep that ended in an error: kept until they succeed, so that one does not cost the others."""

import json
from pathlib import Path

from imagen.files import write_json


def note_failure(folder: Path, name: str, error: BaseException, command: str) -> None:
    """Keep in one line what went wrong with a point of the sweep in ``folder``."""
    said = " ".join(str(error).split()) or type(error).__name__
    write_json(folder / "failed" / f"{name}.json", {"error": said, "command": command})


def forget_failure(folder: Path, name: str) -> None:
    (folder / "failed" / f"{name}.json").unlink(missing_ok=True)


def failures(folder: Path) -> dict[str, dict[str, str]]:
    """What went wrong, by the points' names."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "failed").glob("*.json"))
    }
