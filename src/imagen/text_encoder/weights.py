"""Where an encoder's weights are, and which they are: folders, the Hugging Face cache, the hub; hashes of files."""

import functools
import hashlib
import json
import re
from pathlib import Path

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
    """The snapshot of ``path`` in the user's cache, or else from the hub; UserError in one sentence when in neither.

    Where ``revision`` is None and the main branch has no safetensors, the hub's own conversion of it is taken;
    several usable snapshots in the cache are then a UserError, as nothing says which of them is meant.
    """
    from huggingface_hub import constants

    reason = "nothing was found"
    for find in (_cached, _downloaded, _converted):
        try:
            folder = find(path, revision)
            if folder and weight_files(folder):
                return folder
            reason = f"{path} has no safetensors weights there" if folder else reason
        except UserError:
            raise
        except (
            Exception
        ) as error:  # the hub raises its own, the network's and the file system's: each means "not there"
            reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else " ".join(str(error).split())[:200]
            if find is not _cached:
                break  # the reason why the hub did not answer is the one to tell
    raise UserError(
        f"text_encoder {name}: {path!r} (revision {revision}) was looked for as a folder, in the Hugging Face cache "
        f"{constants.HF_HUB_CACHE} and on the hub ({reason}): give a folder that holds config.json, the tokenizer and "
        "model.safetensors, text_encoder.path=<folder>"
    )


def _cached(path: str, revision: str | None) -> Path | None:
    from huggingface_hub import constants, snapshot_download

    if revision is not None:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{path.replace('/', '--')}", "snapshots").glob("*")
    usable = sorted(folder for folder in snapshots if weight_files(folder))
    if len(usable) > 1:  # a choice among them here would let any later download change the fingerprint
        raise UserError(
            f"text_encoder.revision is null and the Hugging Face cache holds several snapshots of {path!r} "
            f"({', '.join(folder.name for folder in usable)}): name the one to use, text_encoder.revision=<one of them>"
        )
    return usable[0] if usable else None


def _downloaded(path: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=["*/*"]))


def _converted(path: str, revision: str | None) -> Path | None:
    """The pull request in which the hub's bot offers a model's weights as safetensors (often never merged)."""
    from huggingface_hub import get_repo_discussions

    if revision is not None:
        return None
    offers = get_repo_discussions(path, author="SFconvertbot", discussion_type="pull_request")
    return next((_downloaded(path, offer.git_reference) for offer in offers), None)
