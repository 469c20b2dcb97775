"""``prompts=``: a list, the name of a set, or a file -> a list of prompts; the same in every command.

The sets are text and CSV files in ``prompt_sets/``; adding one is adding a file. COCO's are made by the user, from
COCO's own annotations.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from imagen.errors import UserError
from imagen.files import locate
from imagen.prompt_files import DECODING_ERRORS, NoColumn, Prompt, parse
from imagen.published_prompts import recognise

log = logging.getLogger(__name__)

MOST_FAULTS = 3
"""Lines of a file that are named in a warning."""

COCO = Path("data/coco/prompts.csv")
"""Where the command of docs/evaluation.md lets ``data_prep/coco.py`` write its draw."""

OF_COCO = {"coco30k": 30_000, "coco10k": 10_000}
"""Draws of COCO's captions, of the paper's FID-30K and FID-10K: the smaller one begins the larger."""


def read_prompts(prompts: str | Sequence[object] | Mapping[object, object]) -> list[str]:
    """The prompts that ``prompts`` names, without their kinds; as ``read_prompts_and_kinds`` has them."""
    return [prompt.text for prompt in read_prompts_and_kinds(prompts)]


def read_prompts_and_kinds(prompts: str | Sequence[object] | Mapping[object, object]) -> list[Prompt]:
    """The prompts that ``prompts`` names, with their kinds: a list is taken as it is, a set's name before a file's.

    A file or URL, in UTF-8, is text with a prompt a line (blank lines and lines that start with # are skipped); .csv or
    .tsv with a column ``prompt`` or ``caption``, or of one column without a header; or .jsonl. A column ``kind``,
    ``category`` or ``tag`` holds the kinds. Bad lines are left out with a warning. Published sets are recognised.

    Raises: UserError if there is no such set or file, it cannot be read, or there is no prompt in it.
    """
    if isinstance(prompts, Mapping):
        raise UserError(f'prompts={dict(prompts)} is not a list: write \'prompts=["red apple","a house"]\'')
    if not isinstance(prompts, str):
        found = [Prompt(_prompt(entry, prompts)) for entry in prompts]
        if not found:
            raise UserError(f"prompts={list(prompts)} holds no prompt: give at least one")
        return found
    if prompts in prompt_sets():
        suffix = next(entry.suffix for entry in _shipped() if entry.stem == prompts)
        text = (files("imagen") / "prompt_sets" / f"{prompts}{suffix}").read_text(encoding="utf-8")
        return _parsed(text, suffix, prompts)
    if prompts in OF_COCO:
        return _of_coco(prompts)
    name = urlsplit(prompts).path if "://" in prompts else prompts
    found = _parsed(_text(prompts), PurePosixPath(name).suffix.lower(), prompts)
    published, difference = recognise(found)
    if published is not None:
        log.info("prompts=%r is %s: %d prompts of %d kinds", prompts, published.name, len(found), len(published.counts))
    elif difference:
        log.warning("prompts=%r holds %s: its numbers do not compare with those published", prompts, difference)
    return found


def prompt_sets() -> list[str]:
    """The names of the sets that come with the package."""
    return sorted(entry.stem for entry in _shipped())


def _of_coco(name: str) -> list[Prompt]:
    count, made_by = OF_COCO[name], "make it with python data_prep/coco.py input=<COCO's folder> output=data/coco"
    if not COCO.is_file():
        raise UserError(f"prompts={name} is read from {COCO}, which is not there: {made_by}")
    found = _parsed(_text(str(COCO)), ".csv", str(COCO))
    if len(found) < count:
        raise UserError(f"prompts={name} needs {count:,} prompts, and {COCO} has {len(found):,}: {made_by}")
    return found[:count]


def _shipped() -> list[PurePosixPath]:
    entries = [PurePosixPath(entry.name) for entry in (files("imagen") / "prompt_sets").iterdir()]
    return [entry for entry in entries if entry.suffix in (".txt", ".csv")]


def _prompt(entry: object, prompts: Sequence[object]) -> str:
    # Hydra reads prompts=[7,yes] as a number and a truth value: a number is a fair prompt, anything else is a slip
    if isinstance(entry, str):
        return entry
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        return str(entry)
    raise UserError(
        f'prompts={list(prompts)}: {entry!r} is not text; put quotes round it: \'prompts=["red apple","yes"]\''
    )


def _text(name: str) -> str:
    is_url = "://" in name
    if not is_url and not os.path.isfile(os.path.expanduser(name)):  # unlike Path's, these take any text, however long
        raise UserError(
            f"prompts={name!r} is neither a set ({', '.join([*prompt_sets(), *OF_COCO])}) nor a file; "
            f"a single prompt is a list of one: 'prompts=[\"{name}\"]'"
        )
    try:
        content = (locate(name) if is_url else Path(os.path.expanduser(name))).read_bytes()
    except UserError as error:
        raise UserError(f"prompts={name!r}: {error}") from error
    except Exception as error:  # each kind of URL has errors of its own
        said = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise UserError(f"prompts={name!r} cannot be read ({said}): check that it is there") from error
    text = content.decode("utf-8-sig", errors=DECODING_ERRORS)  # -sig: spreadsheets put a byte order mark first
    if re.match(r"\s*<(!doctype html|html)\b", text, re.IGNORECASE):
        raise UserError(f"prompts={name!r} is a web page: give the address of the file itself, often called raw")
    return text


def _parsed(text: str, suffix: str, name: str) -> list[Prompt]:
    try:
        rows = parse(text, suffix)
    except NoColumn as error:
        raise UserError(
            f"prompts={name!r} has no column 'prompt' or 'caption' among {error}: name one so in its first line"
        ) from error
    found = [row.prompt for row in rows if row.prompt is not None]
    faults = [f"line {row.line} {row.fault}" for row in rows if row.prompt is None]
    if not found:
        why = f" ({faults[0]})" if faults else ""
        raise UserError(f"prompts={name!r} holds no prompt{why}: give at least one")
    if faults:
        said = ", ".join([*faults[:MOST_FAULTS], *["..."] * (len(faults) > MOST_FAULTS)])
        log.warning("prompts=%r: %d of %d lines are left out; %s", name, len(faults), len(rows), said)
    return found
