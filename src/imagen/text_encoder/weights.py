"""Where an encoder's weights are, and which they are: folders, the Hugging Face cache, the hub; hashes of files."""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from imagen.errors import UserError

DOWNLOADED = ["*.json", "*.txt", "*.model", "*.safetensors"]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the weights in ``folder``; none when they are not all there."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        return []
    files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return files if all(file.exists() for file in files) else []


def digest(files: list[Path]) -> str:
    """One short hash of several files' names and contents."""
    lines = []
    for file in files:
        stat = file.stat()
        lines.append(f"{file.name} {_sha256(file, stat.st_size, stat.st_mtime_ns)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _sha256(file: Path, size: int, modified: int) -> str:
    # size and modified are there for the cache's sake: a changed file is hashed again
    blob = file.resolve().name
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob  # the hub's cache names large files by their SHA-256: 40 GB need not be read to be known
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def from_hub(name: str, path: str, revision: str | None) -> Path:
    """The snapshot of ``path`` in the user's cache, or else from the hub; UserError in one sentence when in neither."""
    from huggingface_hub import constants, snapshot_download

    reason = ""
    for cached in (True, False):
        try:
            options: dict[str, Any] = {
                "allow_patterns": DOWNLOADED,
                "ignore_patterns": ["*/*"],
                "local_files_only": cached,
            }
            folder = Path(snapshot_download(path, revision=revision, **options))
        except (
            Exception
        ) as error:  # the hub raises its own, the network's and the file system's: each means "not there"
            reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error).strip().split("\n")[0]
            continue
        if weight_files(folder):
            return folder
        reason = f"that revision has no safetensors weights in {folder}"
    raise UserError(
        f"text_encoder {name}: {path!r} (revision {revision}) was looked for as a folder, in the Hugging Face cache "
        f"{constants.HF_HUB_CACHE} and on the hub ({reason}): give a folder that holds config.json, the tokenizer and "
        "model.safetensors, text_encoder.path=<folder>"
    )
