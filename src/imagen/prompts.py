"""``prompts=``: a list, the name of a set, or a text or CSV file -> a list of prompts; the same in every command.

The sets are text files in ``prompt_sets/``; adding one is adding a file.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from imagen.errors import UserError

COLUMNS = ("prompt", "prompts", "caption", "captions")  # of a CSV file, in any case


def read_prompts(prompts: str | Sequence[object] | Mapping[object, object]) -> list[str]:
    """The prompts that ``prompts`` names: a list is taken as it is, a set's name before a file of the same name.

    A text file has one prompt a line; blank lines and lines that start with # are skipped. A .csv or .tsv file has
    them in its column ``prompt`` or ``caption`` (or is one column, without a header). Files are UTF-8.

    Raises: UserError if there is no such set or file, it cannot be read, or there is no prompt in it.
    """
    if isinstance(prompts, Mapping):
        raise UserError(f'prompts={dict(prompts)} is not a list: write \'prompts=["red apple","a house"]\'')
    if not isinstance(prompts, str):
        found = [_prompt(entry, prompts) for entry in prompts]
    elif prompts in prompt_sets():
        found = _from_text((files("imagen") / "prompt_sets" / f"{prompts}.txt").read_text(encoding="utf-8"))
    else:
        found = _from_file(prompts)
    if not found:
        raise UserError(f"prompts={_shown(prompts)} holds no prompt: give at least one")
    return found


def prompt_sets() -> list[str]:
    """The names of the sets that come with the package."""
    names = [entry.name for entry in (files("imagen") / "prompt_sets").iterdir()]
    return sorted(name.removesuffix(".txt") for name in names if name.endswith(".txt"))


def _prompt(entry: object, prompts: Sequence[object]) -> str:
    # Hydra reads prompts=[7,yes] as a number and a truth value: a number is a fair prompt, anything else is a slip
    if isinstance(entry, str):
        return entry
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        return str(entry)
    raise UserError(
        f'prompts={_shown(prompts)}: {entry!r} is not text; put quotes round it: \'prompts=["red apple","yes"]\''
    )


def _from_file(name: str) -> list[str]:
    path = Path(os.path.expanduser(name))
    if not os.path.isfile(path):  # unlike Path's, these two take any text, however long, without an error
        raise UserError(
            f"prompts={name!r} is neither a set ({', '.join(prompt_sets())}) nor a file; "
            f"a single prompt is a list of one: 'prompts=[\"{name}\"]'"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: spreadsheets put a byte order mark first
    except UnicodeDecodeError as error:
        raise UserError(f"prompts={name!r} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"prompts={name!r} cannot be read: {error.strerror}") from error
    separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    return _from_text(text) if separator is None else _from_table(text, separator, name)


def _from_text(text: str) -> list[str]:
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _from_table(text: str, separator: str, name: str) -> list[str]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except csv.Error as error:
        raise UserError(f"prompts={name!r} cannot be read as a table: {error}") from error
    if not rows:
        return []
    header = [title.strip().lower() for title in rows[0]]
    named = [header.index(column) for column in COLUMNS if column in header]
    if not named and any(len(row) > 1 for row in rows):
        raise UserError(
            f"prompts={name!r} has no column 'prompt' or 'caption' among {', '.join(rows[0])}: "
            "name one so in its first line"
        )
    column, body = (named[0], rows[1:]) if named else (0, rows)
    values = (row[column].strip() for row in body if len(row) > column)
    return [value for value in values if value]


def _shown(prompts: str | Sequence[object]) -> str:
    return repr(prompts if isinstance(prompts, str) else list(prompts))
