"""The scripts' front door: compose the config with Hydra, run, and say what went wrong in one sentence."""

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue

from imagen.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The project's configuration tree; the package is meant to be installed from a clone, with ``pip install -e .``."""


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a config as the script of that name would; for notebooks, tests and ``imagen.summary``."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return without_stale_keys(hydra.compose(config_name, overrides=overrides))


def without_stale_keys(cfg: DictConfig) -> DictConfig:
    """Drop what an experiment set for an option that was then exchanged on the command line.

    ``experiment=toy ema=none`` leaves toy's ``ema.decay`` behind, a key of another option of ``ema``. A key of no
    option at all stays, and fails when the object is built.
    """
    for folder in (path for path in CONF.iterdir() if path.is_dir() and path.name in cfg):
        node = cfg[folder.name]
        if isinstance(node, DictConfig) and "_target_" in node:
            options = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("*.yaml")]
            known = {key for option in options for key in option}
            own = {key for option in options if option.get("_target_") == node["_target_"] for key in option}
            with open_dict(cfg):
                for key in [key for key in node if key in known - own]:
                    del node[key]
    return cfg


def main(
    config_name: str, prepare: Callable[[list[str]], None] = lambda arguments: None
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorate a script's ``task(cfg)``: like ``hydra.main``, but a user's mistake ends in one sentence and status 1.

    ``prepare`` is called with the command line's arguments before anything is composed.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> None:
            with one_sentence(config_name):  # in here, since Hydra adds lines of its own to what a task raises
                task(without_stale_keys(cfg))

        def script() -> None:
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands the exception over instead of printing it
            with one_sentence(config_name):
                prepare(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()

        return script

    return decorate


class one_sentence:
    """Turn the errors that a user can cause into one sentence on stderr; let every other error through whole."""

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BrokenPipeError):  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at exit complains
            sys.exit(1)
        if isinstance(error, UserError):
            sys.exit(f"error: {error}")
        if isinstance(error, MissingMandatoryValue):
            sys.exit(f"error: {error.full_key} is missing; give it as {error.full_key}=...")
        if isinstance(error, HydraException) and not isinstance(error, InstantiationException):
            sys.exit(f"error: {explain(error, self.config_name)}")


def explain(error: Exception, config_name: str) -> str:
    """Hydra's complaint about an override as one sentence that names the key and the nearest keys that exist."""
    first_line = str(error).split("\n")[0].strip()
    if isinstance(error, OverrideParseException):
        return f'{first_line} (quote a list for the shell: \'prompts=["a red apple","a house"]\')'
    unknown = re.search(r"Could not override '([^']*)'", str(error)) or re.search(r"full_key: (\S+)", str(error))
    if unknown is None:
        return " ".join(str(error).split())
    key = unknown.group(1)
    valid = sorted(set(_keys(OmegaConf.to_container(compose(config_name, []), resolve=False))))
    last = key.split(".")[-1].split("@")[0]
    close = difflib.get_close_matches(key, valid, n=3, cutoff=0.6)
    close += [name for name in valid if difflib.SequenceMatcher(None, name.split(".")[-1], last).ratio() > 0.8]
    hint = f"the nearest keys are {', '.join(dict.fromkeys(close[:4]))}" if close else "see --help for the keys"
    return f"unknown config key '{key}': {hint}"


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from _keys(child, f"{prefix}{key}.")
