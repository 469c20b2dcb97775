"""Points of a sweep that ended in an error: kept until they succeed, so that one does not cost the others."""

import json
from pathlib import Path

from imagen.files import write_json


def note_failure(folder: Path, key: str, said: str, command: str) -> None:
    """Keep in one line what went wrong with a point of the sweep in ``folder``, and what runs it again."""
    write_json(folder / "failed" / f"{key}.json", {"error": " ".join(said.split()), "command": command})


def forget_failure(folder: Path, key: str) -> None:
    (folder / "failed" / f"{key}.json").unlink(missing_ok=True)


def failures(folder: Path) -> dict[str, dict[str, str]]:
    """What went wrong, by the points' keys; those of other settings are among them."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "failed").glob("*.json"))
    }
