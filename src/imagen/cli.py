"""The scripts' front door: compose the config with Hydra, run, and say what went wrong in one sentence."""

import ast
import difflib
import errno
import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeGuard

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from imagen.config_check import check_values, read_yaml, typed
from imagen.errors import UserError
from imagen.files import NO_ROOM
from imagen.slots import SLOTS

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The project's configuration tree; the package is meant to be installed from a clone, with ``pip install -e .``."""

SCRIPTS = ("train", "sample", "evaluate")
"""The scripts that are told of each other's choices."""

INSTEAD = {
    "trainer.accumulate_grad_batches": "trainer.accumulate_grad_batches follows from other keys: set micro_batch_size, "
    "the pictures that a device holds at once, and batch_size, those of a step",
}
"""Keys that one may look for, and what is to be set in their place."""

OF_THE_DISK = (*NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO, errno.ESTALE)
"""No space, no right to write, a file that vanished: errors of the machine, for which a traceback is no help."""


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a config as the script of that name would; for notebooks, tests and ``imagen.summary``."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(hydra.compose(config_name, overrides=overrides), config_name)


def checked(cfg: DictConfig, config_name: str) -> DictConfig:
    """``cfg`` without stale keys; UserError where a key is not the script's, or a value not what its key takes."""
    _check_keys(cfg, config_name)
    drop_stale_keys(cfg)
    check_values(cfg, CONF, config_name)
    return cfg


def override(key: str, value: object) -> str:
    """``key`` set to ``value`` as Hydra reads it: text in quotes where it has more than letters and digits."""
    odd = isinstance(value, str) and not re.fullmatch(r"[\w./:@%+-]+", value)
    return f"{key}={json.dumps(value, ensure_ascii=False) if odd else typed(value)}"


def as_overrides(group: str, node: DictConfig) -> list[str]:
    """``node`` as one would pick it on the command line: the nearest option of ``group``, and what differs from it."""
    said = {str(key): value for key, value in node.items()}
    differing = {
        path.stem: [
            override(f"{group}.{key}", value) for key, value in said.items() if read_yaml(path).get(key) != value
        ]
        for path in sorted((CONF / group).glob("*.yaml"))
        if read_yaml(path).get("_target_") == said.get("_target_")
    }
    if not differing:
        return [f"{group}={said.get('name')}"]
    option = min(differing, key=lambda name: len(differing[name]))
    return [f"{group}={option}", *differing[option]]


def drop_stale_keys(cfg: DictConfig) -> None:
    """Drop what an experiment set for an option that was then exchanged on the command line.

    ``experiment=toy ema=none`` leaves toy's ``ema.decay`` behind, a key of another option of ``ema``. A key of no
    option at all stays, and fails when the object is built. The slots of sampling are treated alike.
    """
    for parent in (cfg, *(cfg[slot] for slot in SLOTS if isinstance(cfg.get(slot), DictConfig))):
        for key, node in parent.items_ex(resolve=False):
            if isinstance(node, DictConfig) and "_target_" in node:
                named = str(node["_target_"]).split(".")[1]  # the key need not: augmentation_schedule is a schedule
                _drop_stale(node, named if (CONF / named).is_dir() else str(key))


def _drop_stale(node: DictConfig, choice: str) -> None:
    options = [read_yaml(path) for path in (CONF / choice).glob("*.yaml")]
    known = {key for option in options for key in option}
    own = {key for option in options if option.get("_target_") == node["_target_"] for key in option}
    with open_dict(node):
        for key in [key for key in node if key in known - own]:
            del node[key]


def _check_keys(cfg: DictConfig, config_name: str) -> None:
    """Hydra refuses a mistyped key on the command line; in an experiment it would compose, and do nothing."""
    known = declared_keys(CONF / f"{config_name}.yaml")
    valid = sorted(set(_keys(OmegaConf.to_container(cfg, resolve=False))))
    for key in map(str, cfg):
        if key not in known:
            raise UserError(unknown_key(key, [name for name in valid if name.split(".")[0] in known]))
    for many in [name for name in ("callback", "logger", "metric") if name in cfg]:
        options = {path.stem for path in (CONF / many).glob("*.yaml")}
        for key in sorted(set(map(str, cfg[many])) - options):
            raise UserError(unknown_key(f"{many}.{key}", [f"{many}.{option}" for option in sorted(options)]))


def declared_keys(path: Path) -> set[str]:
    """The keys at the top of what a file composes: its own, and those of the options in its defaults."""
    node = read_yaml(path)
    keys = set(node) - {"defaults"}
    for default in node.get("defaults", []):
        if isinstance(default, dict):
            package = next(iter(default)).split("@")[-1].removeprefix("/")
            keys.add(package.split(".")[0])
        elif default != "_self_":  # a file whose package is _global_
            keys |= declared_keys(CONF / f"{default.removeprefix('/')}.yaml")
    return keys


def _choices(config_name: str) -> dict[str, list[str]]:
    """The choices that a script's config makes, as one picks them: of each group its place or places in the config."""
    found: dict[str, list[str]] = {}
    for default in read_yaml(CONF / f"{config_name}.yaml").get("defaults", []):
        if isinstance(default, dict):
            group, _, place = next(iter(default)).lstrip("/").partition("@")
            if not group.startswith("override "):
                found.setdefault(group, []).append(f"{group}@{place}" if place not in ("", group) else group)
        elif default != "_self_":
            for group, places in _choices(default.removeprefix("/")).items():
                found.setdefault(group, []).extend(places)
    return found


def options_of(config_name: str) -> str:
    """The choices that a script takes with the options of each, a line a group: for its ``--help``."""
    lines = []
    for group, places in sorted(_choices(config_name).items()):
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        if options:  # a sweep's variants come with the ablation
            lines.append(f"{', '.join(places)}: {', '.join(options)}")
    return "\n".join(lines)


def about(config_name: str) -> str:
    """What a script does and how it is called, by its own docstring: for its ``--help``."""
    return ast.get_docstring(ast.parse((CONF.parent / f"{config_name}.py").read_text())) or ""


def keys_of(config_name: str) -> str:
    """The keys of a script's config as its file explains them, and those of the files it takes in: for ``--help``."""
    return "\n".join(_explained(config_name)).replace("$", "$$")  # Hydra's template, in which $ begins a name


def _explained(config_name: str) -> list[str]:
    head, _, body = (CONF / f"{config_name}.yaml").read_text().partition("defaults:\n")
    if not body:
        return [line for line in head.splitlines() if not line.startswith("#")]
    defaults, keys = re.split(r"^(?=[^ ])|\n(?=\n)", body, maxsplit=1, flags=re.MULTILINE)
    lines = keys.strip().splitlines()
    for file in re.findall(r"^  - /(data_prep/\w+)$", defaults, re.MULTILINE):
        lines += ["", *_explained(file)]
    picked = re.findall(r"^  - /?(?:[\w/]+@)?(\w+: \S+ +#.*)", defaults, re.MULTILINE)
    return picked + lines


for _resolver in (about, keys_of, options_of):  # conf/hydra/here.yaml asks for them
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)


def main(
    config_name: str, around: Callable[[list[str]], AbstractContextManager[list[str]]] = nullcontext
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorate a script's ``task(cfg)``: like ``hydra.main``, but a user's mistake ends in one sentence and status 1.

    What the task returns is what a search of Hydra's sweepers minimises. ``around`` takes the command line's arguments
    and gives those that are composed; it may do something before and after.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> Any:
            with one_sentence(config_name):  # in here, since Hydra adds lines of its own to what a task raises
                return task(checked(cfg, config_name))

        def script() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands the exception over instead of printing it
            with one_sentence(config_name), around(sys.argv[1:]) as arguments:
                # argparse would not take the overrides before and after it for one list
                sys.argv[1:] = sorted(arguments, key=lambda word: word not in ("-m", "--multirun"))
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()

        return script

    return decorate


class one_sentence:
    """Turn the errors that a user can cause into one sentence on stderr; let every other error through whole."""

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            print("\nstopped", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        if isinstance(error, BrokenPipeError):  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at exit complains
            sys.exit(1)
        if isinstance(error, UserError):
            sys.exit(f"error: {error}")
        if isinstance(error, MissingMandatoryValue):
            sys.exit(f"error: {error.full_key} is missing; give it as {error.full_key}=...")
        if is_of_the_disk(error):
            sys.exit(f"error: {of_the_disk(error)}")
        if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
            sys.exit("error: a group takes the name of an option, or a list of them: not null, a number or a mapping")
        if isinstance(error, RuntimeError) and str(error).startswith('Could not detect "srun"'):
            sys.exit("error: hydra/launcher=slurm needs SLURM's srun, which is not here: take hydra/launcher=local")
        foreseen = isinstance(error, HydraException | InterpolationResolutionError)
        if foreseen and not isinstance(error, InstantiationException):
            sys.exit(f"error: {explain(error, self.config_name)}")


def is_of_the_disk(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether the machine is at fault, not the program."""
    return isinstance(error, OSError) and (error.errno in OF_THE_DISK or isinstance(error, FileNotFoundError))


def of_the_disk(error: OSError) -> str:
    """The file, what is wrong with its disk and, where that helps, to make room."""
    number = error.errno or errno.ENOENT
    named = error.filename or ("a file" if error.errno else error)  # a bucket's error is the name alone
    remedy = ": make room and run the same command again" if number in NO_ROOM else ""
    return f"{named} cannot be used: {os.strerror(number)}{remedy}"


def explain(error: Exception, config_name: str) -> str:
    """Hydra's complaint about an override as one sentence that names the key and the nearest keys that exist."""
    first_line = str(error).split("\n")[0].strip()
    if isinstance(error, OverrideParseException):
        if "=" not in error.override and not error.override.startswith("~"):
            return f"'{error.override}' sets nothing: write key=value, or --help alone for the keys and the options"
        return f'{first_line} (quote a list for the shell: \'prompts=["a red apple","a house"]\')'
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        stored = ConfigStore.instance().repo.get(group, {})  # an ablation's variants have no files
        options = sorted(Path(name).stem for name in (*(CONF / group).glob("*.yaml"), *stored))
        return f"{group}={option} is not an option of {group}: {among(option, options)}"
    unknown = re.search(r"Could not override '([^']*)'", str(error)) or re.search(r"full_key: (\S+)", str(error))
    if unknown is None or isinstance(error, InterpolationResolutionError):
        return " ".join(str(error).split())
    if unknown.group(1) in INSTEAD:
        return INSTEAD[unknown.group(1)]
    group = unknown.group(1).split("@")[0]
    if group == "variant":
        return "variant is of an ablation: add sweep=<ablation>-<scale>, or -m ablation=... scale=... for all variants"
    takers = [name for name in SCRIPTS if group in _choices(name)]
    if takers and config_name not in takers:
        return f"{group} is no choice of {config_name}.py but of {' and '.join(f'{name}.py' for name in takers)}"
    if places := _choices(config_name).get(unknown.group(1), []):
        return f"{group} is picked for each stage by itself: {', '.join(f'{place}=...' for place in places)}"
    valid = sorted(set(_keys(OmegaConf.to_container(compose(config_name, []), resolve=False))))
    return unknown_key(unknown.group(1), [*valid, *sorted(declared_keys(CONF / f"{config_name}.yaml") - set(valid))])


def unknown_key(key: str, valid: Sequence[str]) -> str:
    """That a key is none of the valid ones, and the nearest of them."""
    last = key.split(".")[-1].split("@")[0]
    close = difflib.get_close_matches(key, valid, n=3, cutoff=0.6)
    close += [name for name in valid if difflib.SequenceMatcher(None, name.split(".")[-1], last).ratio() > 0.8]
    hint = f"the nearest keys are {', '.join(dict.fromkeys(close[:4]))}" if close else "see --help for the keys"
    return f"unknown config key '{key}': {hint}"


def among(name: str, names: Sequence[str]) -> str:
    """What there is to choose from, the nearest to ``name`` first."""
    close = difflib.get_close_matches(name, names, n=3)
    there_are = f"there are {', '.join(names) or 'none'}"
    return f"the nearest is {close[0]}; {there_are}" if close else there_are


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from _keys(child, f"{prefix}{key}.")
