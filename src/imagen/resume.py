"""Where a training goes on from: a checkpoint of its own, one that it is given, or nothing."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen.checkpoints import (
    DamagedError,
    check_whole,
    checkpoint_name,
    checkpoint_step,
    read_checkpoint,
    remove_checkpoint,
    set_aside,
)
from imagen.errors import UserError
from imagen.faults import Rollback, write_rollbacks
from imagen.runs import NOT_IDENTITY, RunFolder

log = logging.getLogger(__name__)

STATEFUL = {
    *("resolution", "low_resolution", "text_encoder", "null_text", "text_pooling", "network"),
    *("parameterization", "weighting", "optimizer", "ema"),
}
"""What a checkpoint is a state of: these must not change where training goes on from it; all else may."""

SHAPING = {"optimizer": ("_target_", "min_factored")}
"""Of a section, what alone its state depends on: the optimizer's other settings take effect anew."""


@dataclass(frozen=True)
class Past:
    """Where a run goes on from: nothing, or a checkpoint, its step and the seconds trained until then."""

    checkpoint: Path | None = None
    step: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return "nothing" if self.checkpoint is None else f"step {self.step} ({self.checkpoint.name})"


def past_of(config: dict[str, Any], folder: RunFolder) -> Past:
    """What ``resume`` and ``init_from`` say, and the checkpoints in the folder.

    What a run began with elsewhere is past once it has checkpoints of its own. A damaged one among these is passed
    over, said, and set aside under another name. The first process alone calls it.

    Raises: UserError if there is no such checkpoint, or it does not fit ``config``, naming what differs.
    """
    resume, existing = config["resume"], folder.all_checkpoints()
    if resume == "never":
        if existing:
            raise UserError(
                f"resume=never but {folder.path} holds checkpoints: take resume=auto to go on from them, delete it, or "
                "choose another seed"
            )
        return Past()
    if resume == "auto":
        return _newest_whole(existing, config)
    path = Path(resume)
    if not path.exists():
        raise UserError(f"resume={resume} is neither 'auto', 'never' nor a checkpoint that exists")
    own = path.parent.resolve() == folder.checkpoints.resolve()
    if existing and not own:
        return _newest_whole(existing, config)
    if own and (later := [other.name for other in existing if other.name > path.name]):
        raise UserError(
            f"resume={resume} is not the newest checkpoint of this run itself, and what came after it would be lost: "
            f"delete {', '.join(later)} to go back to it, or take resume=auto to go on from the newest"
        )
    if config.get("init_from") is not None and not existing:
        raise UserError(
            f"resume={resume} takes all of a checkpoint, and init_from={config['init_from']} the weights of another: "
            "give one of the two"
        )
    return _past(path, "give another", config)


def go_back(folder: RunFolder, failed: int, last_good: int, behind: list[Rollback]) -> list[Rollback]:
    """Make the last checkpoint up to step ``last_good`` the run's newest, and note it; all ways back taken so far.

    Where all are later, of the row of skipped steps, it is the oldest: nothing in the row changed the network.
    The first process alone calls it.
    """
    steps = [checkpoint_step(path) for path in folder.all_checkpoints()]
    back_to = max([step for step in steps if step <= last_good] or steps[:1] or [0])
    rollbacks = [*behind, Rollback(failed, back_to)]
    write_rollbacks(folder.faults, rollbacks)
    for path in folder.all_checkpoints():  # they are of a run that is given up
        if checkpoint_step(path) > back_to:
            remove_checkpoint(path)
    forget_snapshots(folder, back_to)
    return rollbacks


def in_vain(folder: RunFolder, last_good: int, behind: list[Rollback]) -> int:
    """How many ways back led to no good checkpoint, up to step ``last_good``, beyond the step that they were for."""
    good = [step for step in map(checkpoint_step, folder.all_checkpoints()) if step <= last_good]
    return sum(rollback.failed >= max(good, default=0) for rollback in behind)


def forget_snapshots(folder: RunFolder, step: int) -> None:
    """Remove snapshots later than ``step``: they will be made again."""
    for path in folder.all_snapshots():
        if path.name >= checkpoint_name(step + 1).removesuffix(".ckpt"):  # a snapshot's name begins like it
            path.unlink(missing_ok=True)


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What a checkpoint's weights and optimizer state were made for, where the config in hand says otherwise.

    Keys that only one of the two has are of another version of the project, and pass.
    """
    sections = sorted(there.keys() & here.keys() & STATEFUL)
    old, new = ({key: _shaping(key, config[key]) for key in sections} for config in (there, here))
    return _differences(old, new, "")


def _shaping(section: str, value: Any) -> Any:
    """A section less what changes nothing in its state."""
    if not isinstance(value, dict):
        return value
    kept = set(SHAPING.get(section, value)) - set(NOT_IDENTITY.get(section, ()))
    return {key: value[key] for key in value if key in kept}


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str) -> list[str]:
    found: list[str] = []
    for key in sorted(there.keys() & here.keys()):
        old, new, name = there[key], here[key], f"{prefix}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            old_class, new_class = (str(node.get("_target_")).rpartition(".")[2] for node in (old, new))
            if old_class == new_class:
                found += _differences(old, new, f"{name}.")
            else:  # the keys of another option are beside the point
                found.append(f"{name} {old_class} there, {new_class} here")
        elif old != new:
            found.append(f"{name} {old} there, {new} here")
    return found


def _newest_whole(existing: list[Path], config: dict[str, Any]) -> Past:
    damaged: list[Path] = []
    for path in reversed(existing):
        try:
            past = _past(path, "it is passed over", config)
        except DamagedError as error:
            log.warning("%s", error)
            damaged.append(path)
        else:
            for passed in damaged:
                log.warning("%s is kept as %s", passed, set_aside(passed).name)
            return past
    if damaged:
        raise UserError(
            f"none of the {len(damaged)} checkpoints in {damaged[0].parent} is whole: delete them, and the same "
            "command begins anew"
        )
    return Past()


def _past(path: Path, remedy: str, config: dict[str, Any]) -> Past:
    check_whole(path, remedy)
    checkpoint = read_checkpoint(path, remedy, mmap=True)
    kept, step = checkpoint["imagen"], int(checkpoint["global_step"])
    if differing := differences(kept["config"], config):
        raise UserError(f"resume={path} does not fit this config: {', '.join(differing)}")
    if config["max_steps"] < step:
        raise UserError(f"resume={path} is at step {step} already, past max_steps={config['max_steps']}: give more")
    return Past(path, step, float(kept["seconds"]))
