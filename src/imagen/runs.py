"""Run folders: where a run lives, what it holds, and how its weights are read back."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from yaml import YAMLError

from imagen.checkpoints import check_whole, read_checkpoint
from imagen.errors import UserError
from imagen.files import atomic_write, disk_errors, make_folder, read_json, write_json
from imagen.hold import hold

if TYPE_CHECKING:  # whoever reads a run's weights need not wait for Lightning
    import lightning

log = logging.getLogger(__name__)

FORMAT = "imagen-lab/1"

NOT_IDENTITY = {
    "": (
        "output_dir",
        "resume",
        "logger",
        "callback",
        "recompute",
        "group_norm",
        "micro_batch_size",
        "find_batch_size",
    ),
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "max_time"),
    "data": ("num_workers", "multiprocessing_context", "made_by"),
    "text_encoder": ("path",),
    "optimizer": ("fused",),
}
"""Keys that change where and how fast a run goes, never what it learns; they are left out of its hash."""


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain resolved containers."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What a run learns by: the resolved config less devices, workers, loggers and paths."""
    own = {key: value for key, value in config.items() if key not in NOT_IDENTITY[""]}
    for section in NOT_IDENTITY.keys() - {""}:
        own[section] = {k: v for k, v in (config.get(section) or {}).items() if k not in NOT_IDENTITY[section]}
    if "root" in own["data"]:  # a data set's name belongs to the run, the place where it lies does not
        own["data"]["root"] = Path(own["data"]["root"]).name
    return own


def config_hash(config: dict[str, Any]) -> str:
    """Eight hex digits over what a run learns by."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]


def snapshot_name(step: int, sigma_rel: float) -> str:
    """The file name of the average of length ``sigma_rel`` after ``step`` optimizer steps; names sort as steps do."""
    return f"step_{step:09d}_{sigma_rel:g}.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """``outputs/<experiment>/<hash8>-s<seed>/`` and the names of what lies in it."""

    path: Path

    @classmethod
    def of(cls, config: dict[str, Any]) -> "RunFolder":
        """The folder that the config's hash names."""
        return cls(Path(config["output_dir"]) / config["name"] / f"{config_hash(config)}-s{config['seed']}")

    @classmethod
    def of_trainer(cls, trainer: "lightning.Trainer") -> "RunFolder":
        """The folder of the run in hand."""
        return cls(Path(trainer.default_root_dir))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def last(self, name: str) -> float | None:
        """The value that a number of this name had last; None if none was ever logged."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.is_file() else []
        return next((row["value"] for row in map(json.loads, reversed(lines)) if row["name"] == name), None)

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def all_checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.checkpoints.glob("step_*.ckpt"))

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    def all_snapshots(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.snapshots.glob("step_*.safetensors"))

    @property
    def faults(self) -> Path:
        return self.path / "faults"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def done(self) -> Path:
        return self.path / "done.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other processes from training in it; one in which nothing came to be is removed.

        The operating system lets go of it when the process ends, however it ends.

        Raises: UserError if another process trains in it, or if it cannot be made.
        """
        make_folder(self.path, "output_dir")
        with hold(self.path / ".lock") as alone:
            if not alone:
                taken = f"{self.path} is being trained by another process"
                raise UserError(f"{taken}: wait for it, or choose another seed or output_dir")
            try:
                yield
            finally:
                self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        if {path.name for path in self.path.iterdir()} <= {".lock", self.config.name}:
            for path in (self.path / ".lock", self.config):
                path.unlink(missing_ok=True)
            self.path.rmdir()
            with suppress(OSError):  # it may hold other runs
                self.path.parent.rmdir()

    def start(self, config: dict[str, Any]) -> None:
        """Make the folder and write its config."""
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.config) as temporary:
            OmegaConf.save(OmegaConf.create(config), temporary)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write ``done.json``, the last file of a run: whoever sees it sees a whole run."""
        write_json(self.done, summary)

    def summary(self) -> dict[str, Any]:
        """What ``finish`` wrote; nothing of a run that is not finished. Raises: UserError if it is damaged."""
        if not self.done.is_file():
            return {}
        again = "the training's command writes it again"
        found = read_json(self.done, again)
        if not {"step", "seconds", "seconds_per_step"} <= found.keys():
            raise UserError(f"{self.done} is of another version: delete it, and {again}")
        return found


@dataclass
class Weights:
    """One stage's averaged network, the config it was trained with and the fingerprint of its text encoder.

    ``sigma_rel`` is the length of its average where that is a snapshot's or a reconstructed one.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    text_fingerprint: dict[str, Any]
    step: int
    sigma_rel: float | None = None

    def save(self, path: Path) -> None:
        """Write one safetensors file that holds all of it, whole or not at all."""
        metadata = {
            "format": FORMAT,
            "config": json.dumps(self.config),
            "text_fingerprint": json.dumps(self.text_fingerprint),
            "step": str(self.step),
            "checksum": checksum(self.state),
            **({} if self.sigma_rel is None else {"sigma_rel": str(self.sigma_rel)}),
        }
        with atomic_write(path, durable=True) as temporary, disk_errors():
            save_file(self.state, temporary, metadata)


def checksum(state: dict[str, Tensor]) -> str:
    """A hash of every tensor's name, type, shape and bytes: a safetensors file does not notice a flipped bit itself."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(source: str | Path) -> Weights:
    """Read a stage from a run folder, finished or not, an exported ``.safetensors`` or a checkpoint.

    Raises:
        UserError: naming what is missing or damaged.
    """
    path = _newest(source)
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_averaged(path)
    if path.suffix == ".ckpt" and Path(source).is_dir():
        log.warning(
            "stage '%s' has no weights.safetensors: taken from its newest checkpoint, step %s of %s",
            source,
            weights.step,
            weights.config.get("max_steps"),
        )
    return weights


def read_head(source: str | Path) -> Weights:
    """What a stage says of itself, its ``state`` left empty and its weights unread. Raises: as ``read_weights``."""
    path = _newest(source)
    return read_header(path) if path.suffix == ".safetensors" else replace(_read_averaged(path, mmap=True), state={})


def _newest(source: str | Path) -> Path:
    """The file that a stage is read from. Raises: UserError if there is none."""
    path = Path(source)
    if path.is_dir() and path.suffix != ".ckpt":  # else a checkpoint that processes wrote together
        folder = RunFolder(path)
        found = [*folder.all_checkpoints(), *([folder.weights] if folder.weights.is_file() else [])]
        if not found:
            raise UserError(
                f"stage '{source}' holds neither weights.safetensors nor a checkpoint; train it first, "
                "or give the folder of a run (outputs/<experiment>/<hash>-s<seed>)"
            )
        return found[-1]
    if not path.exists():
        raise UserError(f"stage '{source}' does not exist; give a run folder or an exported .safetensors file")
    return path


def read_config(source: str | Path) -> dict[str, Any]:
    """The config of a stage, without its weights where it can be had without. Raises: UserError if it is damaged."""
    config = RunFolder(Path(source)).config
    if config.is_file():
        remedy = "delete the file, and the copy that the weights keep is read"
        try:
            found = OmegaConf.load(config)
        except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            raise UserError(f"stage '{source}' is damaged: its config.yaml is not YAML: {remedy}") from error
        if not isinstance(found, DictConfig) or "name" not in found:
            raise UserError(
                f"stage '{source}' is damaged, or of another version: its config.yaml has no name: {remedy}"
            )
        return plain(found)
    return read_weights(source).config


def _read_safetensors(path: Path) -> Weights:
    weights = read_header(path)
    with safe_open(path, framework="pt") as file:
        # in memory of torch's own: views of the file begin where its header ends, and kernels round by the alignment
        state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        written = (file.metadata() or {}).get("checksum")
    if written is not None and written != checksum(state):
        raise UserError(f"stage '{path}' is damaged (its weights are not those written); export or train it again")
    # a snapshot may have been saved in bfloat16; networks compute in float32
    weights.state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return weights


def read_header(path: Path) -> Weights:
    """What an exported ``.safetensors`` says of itself, its ``state`` left empty. Raises: as ``read_weights``."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"stage '{path}' is damaged, or no .safetensors file; export or train it again") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"stage '{path}' was not exported by this project (its metadata lacks format={FORMAT})")
    try:
        config, fingerprint = json.loads(metadata["config"]), json.loads(metadata["text_fingerprint"])
        sigma_rel = float(metadata["sigma_rel"]) if "sigma_rel" in metadata else None
        return Weights({}, config, fingerprint, int(metadata["step"]), sigma_rel)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"stage '{path}' is damaged (its metadata lack what it was trained with); export or train it again"
        ) from error


def _read_averaged(path: Path, *, mmap: bool = False) -> Weights:
    checkpoint = read_checkpoint(path, mmap=mmap)
    if path.is_dir():  # which processes wrote together
        from imagen.sharded_checkpoint import read_folder  # here, since torch's own takes a second to load

        check_whole(path)  # what torch says of a part that is cut is no sentence
        checkpoint = read_folder(path)
    state = checkpoint["state_dict"]
    prefix = "ema.network." if any(name.startswith("ema.network.") for name in state) else "denoiser.network."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    kept = checkpoint["imagen"]
    return Weights(own, kept["config"], kept["text_fingerprint"], int(checkpoint["global_step"]))
