"""Sampling starts from what the stages' own runs say: those settings become config options before Hydra composes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from imagen.errors import UserError

SLOTS = ("base", "sr1", "sr2")
"""The names of a cascade's stages in sample.yaml and evaluate.yaml, in order."""

SLOT_CHOICES = ("sampler", "spacing", "guidance", "threshold")
"""The choices that a slot can make anew; all else is the run's own."""


def slot_names(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The slots of stages with these configs, in order: one that begins with super-resolution leaves ``base`` out.

    Raises: UserError if there are more stages than slots.
    """
    names = SLOTS if not configs or configs[0].get("low_resolution") is None else SLOTS[1:]
    if len(configs) > len(names):
        raise UserError(f"stages has {len(configs)} entries; there is room for {len(names)}: {', '.join(names)}")
    return names[: len(configs)]


def register(arguments: Sequence[str]) -> None:
    """Store each stage's sampler, guidance and threshold as the option ``trained_<slot>`` of its group.

    ``arguments`` are the command line's overrides, of which only ``stages=`` is read; a slot without a stage stays
    empty. So ``base.guidance.weight=2`` is checked against the keys that the run really has.
    """
    from imagen.runs import read_config  # loads torch: only once there is something to read

    configs = [read_config(source) for source in _stages(arguments)]
    _check_filled(arguments, slot_names(configs))
    store_stages(configs)


def store_stages(configs: Sequence[Mapping[str, Any]]) -> None:
    """``register`` of stages with these configs, which need not be trained yet."""
    store = ConfigStore.instance()
    encoder = configs[0].get("text_encoder", {}) if configs else {}
    store.store(group="text_encoder", name="trained", node=encoder)
    config_of = dict(zip(slot_names(configs), configs, strict=True))
    for slot, choice in itertools.product(SLOTS, SLOT_CHOICES):
        store.store(group=choice, name=f"trained_{slot}", node=config_of.get(slot, {}).get(choice, {}))


@contextmanager
def of_stages(arguments: list[str]) -> Iterator[list[str]]:
    """``register`` for a script's ``main``: yields the arguments as they are."""
    register(arguments)
    yield arguments


def _check_filled(arguments: Sequence[str], filled: Sequence[str]) -> None:
    """Raises: UserError if something is set for a slot that no stage fills: it would be of no effect."""
    for argument in arguments:
        slot = argument.lstrip("+~").split("=")[0].split("@")[-1].split(".")[0]
        if filled and slot in SLOTS and slot not in filled:
            raise UserError(f"{argument} is of no effect: the stages fill {', '.join(filled)} alone")


def _stages(arguments: Sequence[str]) -> list[Any]:
    wanted = [argument for argument in arguments if argument.startswith("stages=")]
    try:
        parsed = OverridesParser.create().parse_overrides(wanted)
    except OverrideParseException:
        return []  # Hydra reports it when it composes
    value = parsed[-1].value() if parsed else []
    return [str(source) for source in value] if isinstance(value, list) else []
