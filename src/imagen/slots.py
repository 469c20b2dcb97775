"""Sampling starts from what the stages' own runs say: those settings become config options before Hydra composes."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

SLOTS = ("base", "sr1", "sr2")
"""The names of a cascade's stages in sample.yaml and evaluate.yaml, in order."""

SLOT_CHOICES = ("sampler", "spacing", "guidance", "threshold")
"""The choices that a slot can make anew; all else is the run's own."""


def register(arguments: Sequence[str]) -> None:
    """Store each stage's sampler, guidance and threshold as the option ``trained_<slot>`` of its group.

    ``arguments`` are the command line's overrides, of which only ``stages=`` is read; a slot without a stage stays
    empty. So ``base.guidance.weight=2`` is checked against the keys that the run really has.
    """
    from imagen.runs import read_config  # loads torch: only once there is something to read

    stages = _stages(arguments)
    configs = [read_config(source) for source in stages]
    store = ConfigStore.instance()
    encoder = configs[0]["text_encoder"] if configs else {}
    store.store(group="text_encoder", name="trained", node=encoder)
    for slot, config in zip(SLOTS, [*configs, *({} for _ in SLOTS)], strict=False):
        for choice in SLOT_CHOICES:
            store.store(group=choice, name=f"trained_{slot}", node=config.get(choice, {}))


def _stages(arguments: Sequence[str]) -> list[Any]:
    wanted = [argument for argument in arguments if argument.startswith("stages=")]
    try:
        parsed = OverridesParser.create().parse_overrides(wanted)
    except OverrideParseException:
        return []  # Hydra reports it when it composes
    value = parsed[-1].value() if parsed else []
    return [str(source) for source in value] if isinstance(value, list) else []
