"""Every value of a composed config is of the kind that its key takes, or one sentence says what it should be.

An option's keys are its class's arguments, so their annotations say what fits; the keys of the script itself are of
the kind that they have in its own yaml.
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from imagen.errors import UserError, first_line
from imagen.ranges import Range
from imagen.targets import find_target

KINDS = {
    "prompts": str | list,  # of which read_prompts says what is wrong
    "low_resolution": int | None,
    "depth": int | None,
    "base_weights": list[float] | None,
    "axes": dict | None,
    "micro_batch_size": int | None,
    "augmentation_level": float | None,
    "limit": int | None,
    "images": str | None,
    "device": str | None,
    "init_from": str | None,
    "sweep": str | None,
    "measure": list[str],
    "finished": str | None,
    "min_similarity": float | None,
    "min_aesthetic": float | None,
    "max_watermark": float | None,
    "max_caption_repeats": int | None,
    "languages": list[str] | None,
    "blocklist": str | None,
    **dict.fromkeys(("worker_index", "worker_count"), int),
}
"""What keys of the scripts take where the default does not tell."""

RANGES = {
    **dict.fromkeys(("max_steps", "batch_size", "micro_batch_size", "base_batch_size", "num_samples"), Range(1)),
    **dict.fromkeys(("resolution", "low_resolution", "validate_every_n_steps"), Range(1)),
    **dict.fromkeys(("seed", "num_workers", "worker_index"), Range(0)),
    **dict.fromkeys(("num_measured", "num_train_prompts", "num_heldout_prompts"), Range(0)),
    **dict.fromkeys(("worker_count", "depth"), Range(1)),
    **dict.fromkeys(("caption_dropout", "augmentation_level"), Range(0, 1)),
}
"""What numbers the keys of the scripts may be; the keys of options say it in their annotations (``imagen.ranges``)."""

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def check_values(cfg: DictConfig, conf: Path, config_name: str) -> None:
    """Raises: UserError naming the first value that does not fit its key, and what would."""
    _check_declared(cfg, _declared(conf, config_name), "")
    for key in _picked(conf, config_name):
        if "_target_" not in cfg.get(key, {}):
            raise UserError(f"{key} has no option: pick one, {key}=...")
    groups = {path.name for path in conf.iterdir() if path.is_dir()}
    for key, parent, value in _nodes(cfg, "", groups):
        name = key.rpartition(".")[2]
        if not isinstance(value, DictConfig):
            pick = f"{name}@{key}={value}" if name in groups else f"{parent}=[{name}]"
            raise UserError(f"{key}={value} picks no option: write {pick}, or set one of its keys, {key}.<key>=...")
        if "_target_" in value:
            _check_option(value, key)


def fits(value: object, kind: Any) -> bool:
    """Whether a value of a config is what an annotation says; a list serves for any sequence, a whole number as float.

    Annotations that no config can be held against fit everything.
    """
    kind = _bare(kind)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if kind is None or kind is type(None):
        return value is None
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    container = origin or kind
    if kind is Any or not isinstance(container, type):
        return True
    if issubclass(container, Mapping):
        return isinstance(value, dict)
    if issubclass(container, Sequence) and container is not str:
        return isinstance(value, list) and _entries_fit(value, container, parts)
    return isinstance(value, str if issubclass(container, Path) else container)


def _entries_fit(value: list[Any], container: type, parts: tuple[Any, ...]) -> bool:
    if container is tuple and parts and ... not in parts:
        return len(value) == len(parts) and all(map(fits, value, parts))
    return not parts or all(fits(entry, parts[0]) for entry in value)


def described(kind: Any) -> str:
    """An annotation in words, as far as a config can hold what it names: ``int | None`` is "a whole number or null"."""
    kind = _bare(kind)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words for part in parts if (words := described(part))))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    container = origin or kind
    if isinstance(container, type) and container is not str and issubclass(container, Sequence):
        length = f" of {len(parts)}" if container is tuple and parts and ... not in parts else ""
        return f"a list{length}, each entry {words}" if parts and (words := described(parts[0])) else f"a list{length}"
    if isinstance(container, type) and issubclass(container, Mapping):
        return "a group of keys"
    return NAMES.get(kind, "")


def typed(value: object) -> str:
    """A value as one types it: ``null`` and ``true``, not Python's names for them."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _bare(kind: Any) -> Any:
    """An annotation without what ``Annotated`` adds to it."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _require(fit: bool, key: str, value: object, kind: str) -> None:
    if fit:
        return
    hint = ""
    if kind.startswith(NAMES[int]) and isinstance(value, float) and value.is_integer():
        hint = f": write {key}={int(value)}"
    if kind.startswith(NAMES[str]) and isinstance(value, int | float):
        hint = f": put quotes round it, '{key}=\"{value}\"'"
    raise UserError(f"{key}={typed(value)} must be {kind or 'something else'}{hint}")


def _declared(conf: Path, config_name: str) -> dict[str, Any]:
    """The keys that the script's own yaml gives a default, and those of the files that it takes in whole."""
    own = read_yaml(conf / f"{config_name}.yaml")
    files = [name for name in ("slots", "data_prep/workers") if f"/{name}" in own.get("defaults", [])]
    every = own | {key: value for name in files for key, value in read_yaml(conf / f"{name}.yaml").items()}
    return {key: value for key, value in every.items() if key != "defaults"}


def _picked(conf: Path, config_name: str) -> list[str]:
    """The keys of the script's choices of exactly one option, less those that a stage's own run makes."""
    entries = [
        entry for entry in read_yaml(conf / f"{config_name}.yaml").get("defaults", []) if isinstance(entry, dict)
    ]
    picks = [pair for entry in entries for pair in entry.items() if isinstance(pair[1], str)]
    return [group.rpartition("@")[2].lstrip("/") for group, option in picks if not option.startswith("trained")]


SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time, where yaml was built with it


class _Loader(SafeLoader):
    """Takes ``1e-4`` for a number, as Hydra does; to YAML 1.1 it is text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), [*"-+0123456789"])


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path} is not YAML{where}: {getattr(error, 'problem', None) or first_line(error)}") from error


def _check_declared(cfg: DictConfig, declared: dict[str, Any], prefix: str) -> None:
    for name, default in declared.items():
        key = f"{prefix}{name}"
        if _is_missing(cfg, name):
            continue
        if name not in cfg:
            raise UserError(f"{key} is missing: give it, {key}=...")
        value = cfg[name]
        if isinstance(default, dict):
            _require(isinstance(value, DictConfig), key, value, described(dict))
            _check_declared(value, default, f"{key}.")
        else:
            if isinstance(default, str) and (value == "" or (value is None and default == "???")):
                raise UserError(f"{key} is missing; give it as {key}=...")
            kind = KINDS[name] if name in KINDS else _kind_of(default)
            _require(fits(_plain(value), kind), key, value, described(kind))
            _require_within(value, RANGES.get(name), key)


def _kind_of(default: object) -> Any:
    if default is None or (isinstance(default, str) and ("${" in default or default == "???")):
        return Any
    return list[type(default[0])] if isinstance(default, list) and default else type(default)


def _nodes(cfg: DictConfig, prefix: str, groups: set[str]) -> Iterator[tuple[str, str, Any]]:
    """(full key, parent's name, value) of all that should be an option's settings."""
    for name in map(str, cfg):
        key, value = f"{prefix}{name}", None if _is_missing(cfg, name) else cfg[name]
        is_node = isinstance(value, DictConfig)
        if is_node and "_target_" in value:
            yield key, prefix.rstrip("."), value
        elif is_node and name in groups:  # a choice of many, one key each; an empty one has none
            for member in map(str, value):
                yield f"{key}.{member}", name, value[member]
        elif is_node and not prefix:
            yield from _nodes(value, f"{name}.", groups)
        elif name in groups and value is not None:
            yield key, prefix.rstrip("."), value


def _check_option(node: DictConfig, key: str) -> None:
    kinds = _annotations(find_target(node))
    for name in map(str, node):
        kind = kinds.get(name, Any)
        if kind is not inspect.Parameter.empty and not _is_missing(node, name):
            if isinstance(node[name], DictConfig) and "_target_" in node[name]:  # an option of its own
                _check_option(node[name], f"{key}.{name}")
                continue
            value = _plain(node[name])
            _require(fits(value, kind), f"{key}.{name}", value, described(kind))
            for limits in getattr(kind, "__metadata__", ()):
                _require_within(value, limits, f"{key}.{name}")


def _annotations(target: Any) -> dict[str, Any]:
    function = target.__init__ if isinstance(target, type) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # names that only a type checker imports
        return dict.fromkeys(inspect.signature(target).parameters, Any)


def _require_within(value: object, limits: object, key: str) -> None:
    if isinstance(value, int | float) and isinstance(limits, Range) and value not in limits:
        raise UserError(f"{key}={value} must be {limits}")


def _is_missing(cfg: DictConfig, name: str) -> bool:
    """Whether it is to be given yet, or is made of what is."""
    try:
        cfg.get(name)
    except InterpolationToMissingValueError:
        return True
    return OmegaConf.is_missing(cfg, name)


def _plain(value: object) -> object:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
