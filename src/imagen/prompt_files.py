"""The prompts in a file's text: one a line, a table, or JSON lines; what is bad in it is named, the rest is kept."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

COLUMNS = ("prompt", "prompts", "caption", "captions")  # of a table or of JSON lines, in any case
KIND_COLUMNS = ("kind", "category", "tag")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")

DECODING_ERRORS = "surrogateescape"
"""How bytes of a file that are no UTF-8 are to be decoded."""


class Prompt(NamedTuple):
    """A prompt and the kind that its set counts it to, by which tables group it; '' where there are no kinds."""

    text: str
    kind: str = ""


class Row(NamedTuple):
    """A prompt of a file and the line that it ends on, or, in place of the prompt, what is wrong there."""

    line: int
    prompt: Prompt | None
    fault: str = ""


class NoColumn(ValueError):
    """A table without a column of prompts: the message lists those that it has."""


def parse(text: str, suffix: str) -> list[Row]:
    """The rows of a file, blank lines left out.

    Bytes that are no UTF-8 stand in ``text`` as ``DECODING_ERRORS`` has them, and are a fault of their line alone.
    ``suffix`` says what it is: ``.txt`` a prompt a line, with comments after #; ``.csv``, ``.tsv``; ``.jsonl``. Any
    other, such as a URL's, is told by the first line.

    Raises: NoColumn.
    """
    form = suffix if suffix in (".txt", *SEPARATORS, *JSON_LINES) else _form(text)
    if form in SEPARATORS:
        rows = _table(text, SEPARATORS[form])
    else:
        rows = _json_lines(text) if form in JSON_LINES else _lines(text)
    return [_checked(row) for row in rows]


def _form(text: str) -> str:
    first = text.lstrip().split("\n", 1)[0].lower()
    if first.startswith("{"):
        return ".jsonl"
    for form, separator in SEPARATORS.items():
        if {cell.strip(' \r"') for cell in first.split(separator)} & {*COLUMNS}:
            return form
    return ".txt"


def _lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.strip().startswith("#"):
            yield Row(number, Prompt(line.strip()))


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            yield Row(number, None, "is not JSON")
            continue
        values = {str(key).lower(): value for key, value in entry.items()} if isinstance(entry, dict) else {}
        found, kind = (
            next((values[name] for name in names if name in values), "") for names in (COLUMNS, KIND_COLUMNS)
        )
        if isinstance(found, str) and isinstance(kind, str):
            yield Row(number, Prompt(found.strip(), kind.strip()))
        else:
            yield Row(number, None, "has a prompt or kind that is not text")


def _table(text: str, separator: str) -> Iterator[Row]:
    rows = [(line, row, fault) for line, row, fault in _cells(text, separator) if row or fault]
    header = [title.strip().lower() for title in rows[0][1]] if rows else []
    named = [header.index(name) for name in COLUMNS if name in header]
    kinds = [header.index(name) for name in KIND_COLUMNS if name in header]
    if not named and any(len(row) > 1 for _, row, _ in rows):
        raise NoColumn(", ".join(rows[0][1]))
    column, body = (named[0], rows[1:]) if named else (0, rows)
    for line, row, fault in body:
        cells = [cell.strip() for cell in row]
        if fault:
            yield Row(line, None, fault)
        elif any(cells[max(len(header), 1) :]):  # an unquoted comma would cut a prompt in two
            yield Row(line, None, "has more cells than the first line: put quotes round a prompt with a comma")
        else:
            found = cells[column] if len(cells) > column else ""
            yield Row(line, Prompt(found, cells[kinds[0]] if kinds and len(cells) > kinds[0] else ""))


def _cells(text: str, separator: str) -> list[tuple[int, list[str], str]]:
    """Of each row the line that it ends on, its cells, and what is wrong with it.

    Quotes enclose whole cells. In a file where some do not, each line is a row: tab-separated, quotes are then part of
    the text (PartiPrompts has such a line); comma-separated, the lines at fault are named.
    """
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return [(reader.line_num, row, "") for row in reader]
    except csv.Error:
        lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [(number, *_row(line, separator)) for number, line in lines]


def _row(line: str, separator: str) -> tuple[list[str], str]:
    if separator == "\t":
        return line.split("\t"), ""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True)), ""
    except csv.Error as error:
        return [], f"cannot be read as a row ({error})"


def _checked(row: Row) -> Row:
    if row.prompt is None:
        return row
    if not row.prompt.text:
        return Row(row.line, None, "has no prompt")
    if any(unicodedata.category(sign) == "Cs" for sign in row.prompt.text + row.prompt.kind):  # surrogates
        return Row(row.line, None, "has letters that are not UTF-8: save the file as UTF-8")
    if any(unicodedata.category(sign) == "Cc" and sign not in "\n\r\t" for sign in row.prompt.text):
        return Row(row.line, None, "has a control character in its prompt")
    return row
