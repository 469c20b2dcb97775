"""What a file in ``conf/ablation`` may say: its keys, what each takes, and contrasts of what it has."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from imagen.cli import among
from imagen.config_check import described, fits, typed
from imagen.errors import UserError

OF_ALL_SCALES = {"figure": str, "claim": str | dict, "stage": str | dict}
OF_A_SCALE = {
    "variants": dict | None,
    "axes": dict | None,
    "measure": list[str] | None,
    "plot": dict | None,
    "verdict": dict,
    "also": list[dict] | None,
}
OF_A_SCALES_FILE = {"prepare": list[str], "stages": dict}
OF_A_STAGE = {"experiment": str, "measure": list[str], "plot": dict}
OF_A_PLOT = {"x": str, "y": str}
OF_A_VERDICT = {"metric": str, "expected": str | dict, "contrast": list[dict]}
OF_A_CONTRAST = {"of": dict, "less": dict, "at": str | None}

OF_A_POINT = {"seed", "name", "output_dir", "sweep", "experiment", "variant", "measure", "finished", "resume"}
"""Keys of ``train.py`` by which a point is found, that no variant has."""


def check_file(said: Any, where: str, scale: str, scales: Sequence[str]) -> None:
    """Check the keys of an ablation's file, called ``where``, and of what it says for one scale.

    Raises: UserError naming the file and the first key that is none, is missing, or takes something else.
    """
    check_keys(said, {**OF_ALL_SCALES, **dict.fromkeys(scales, dict | None)}, where)
    if said.get(scale) is None:
        there = ", ".join(name for name in scales if said.get(name) is not None)
        raise UserError(f"{where} has no scale={scale}: it has {there or 'none'}")
    for key in ("claim", "stage"):
        if isinstance(said[key], dict):
            check_keys(said[key], {**dict.fromkeys(scales, str | None), scale: str}, f"{where}: {key}")
    own, at = said[scale], f"{where}: {scale}"
    check_keys(own, OF_A_SCALE, at)
    for key, kind in (("variants", dict), ("axes", list)):  # whose keys are names of one's own
        entries = own.get(key) or {}
        check_keys(entries, dict.fromkeys(entries, kind), f"{at}.{key}")
    _check_variants(own.get("variants") or {}, f"{at}.variants")
    if own.get("plot") is not None:
        check_keys(own["plot"], OF_A_PLOT, f"{at}.plot")
    check_keys(own["verdict"], OF_A_VERDICT, f"{at}.verdict")
    for one in own.get("also") or []:
        check_keys({"contrast": own["verdict"]["contrast"], **one}, OF_A_VERDICT, f"{at}.also")


def _check_variants(variants: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """They become choices on a command line, and differ in what they set."""
    for name, settings in variants.items():
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
            raise UserError(f"{where}: {name!r} is no name for a command line: take letters, digits and . _ + - alone")
        if own := OF_A_POINT.intersection(settings):
            raise UserError(f"{where}.{name}: {min(own)} is the sweep's own to set: leave it out")
        if same := next((one for one, other in variants.items() if one != name and other == settings), None):
            raise UserError(f"{where}: {name} and {same} set the same, and would be one training: leave one out")


def check_scale(said: Any, where: str) -> None:
    """Check the keys of a scale's file, called ``where``. Raises: as ``check_file``."""
    check_keys(said, OF_A_SCALES_FILE, where)
    check_keys(said["stages"], dict.fromkeys(said["stages"], dict), f"{where}: stages")
    for name, stage in said["stages"].items():
        check_keys(stage, OF_A_STAGE, f"{where}: stages.{name}")
        check_keys(stage["plot"], OF_A_PLOT, f"{where}: stages.{name}.plot")


def check_verdict(verdict: Mapping[str, Any], where: str, axes: Mapping[str, Sequence[Any]], variants: Any) -> None:
    """Check that a verdict expects what can be told, and that its contrasts are of the study's axes and variants.

    Raises: UserError naming ``where`` it stands, the key, and what there is.
    """
    expected = verdict["expected"]
    share = expected.get("within") if isinstance(expected, Mapping) and len(expected) == 1 else None
    margin = isinstance(share, int | float) and 0 < share < 1
    if not margin and expected not in ("positive", "negative"):
        raise UserError(
            f"{where}: expected={expected} must be positive, negative or {{within: SHARE}}, a share between 0 and 1"
        )
    if not verdict["contrast"]:
        raise UserError(f"{where}: contrast is empty: name at least one difference, of and less")
    there: dict[str, Sequence[Any]] = {"variant": [*variants], **axes}
    for contrast in verdict["contrast"]:
        check_keys(contrast, OF_A_CONTRAST, f"{where}: contrast")
        if contrast["of"] == contrast["less"]:
            raise UserError(f"{where}: contrast: of and less are the same, {contrast['of']}: let them differ")
        at = contrast.get("at")
        if at is not None and at not in axes:
            raise UserError(f"{where}: contrast: at={at} is none of its axes of sampling: {among(at, [*axes])}")
        for name, value in [*contrast["of"].items(), *contrast["less"].items()]:
            if name not in there:
                raise UserError(f"{where}: contrast: {name} is neither variant nor an axis: {among(name, [*there])}")
            if value not in there[name]:
                options = among(str(value), [str(one) for one in there[name]])
                raise UserError(f"{where}: contrast: {name}={value} is not of the ablation: {options}")


def check_keys(node: Any, kinds: Mapping[Any, Any], where: str) -> None:
    """Raises: UserError unless ``node`` has keys of ``kinds`` alone, each what it takes; left out one is null."""
    if not isinstance(node, dict):
        raise UserError(f"{where} must be a group of keys: {', '.join(kinds)}")
    for key in node:
        if not isinstance(key, str):
            raise UserError(f"{where}: {key} must be text: call it size_{key}, say")
        if key not in kinds:
            raise UserError(f"{where}: {key} is none of its keys: {among(key, [*kinds])}")
    for key, kind in kinds.items():
        if key not in node and not fits(None, kind):
            raise UserError(f"{where}: {key} is missing: it takes {described(kind)}")
        if not fits(node.get(key), kind):
            raise UserError(f"{where}: {key}={typed(node[key])} must be {described(kind)}")
