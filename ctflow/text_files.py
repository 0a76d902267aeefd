"""Text and CSV files as editors and spreadsheets write them, in any usual encoding and with any separator."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path

from ctflow.errors import CTFlowError
from ctflow.files import describe_stranger

log = logging.getLogger(__name__)
_SEPARATORS = (",", ";", "\t", "|")
_LONGEST_CELL = 2**24


@dataclass(frozen=True)
class Table:
    """A CSV.

    Attributes:
        path: The file.
        columns: Names of the columns, blanks around them taken off.
        rows: Number of the row in the file (the header is 1) and its cells by column; without blank rows.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_text(path: Path | str) -> str:
    """Text in UTF-8, with or without a byte order mark, in UTF-16 or -32, or else in Windows-1252 (logged).

    Raises:
        CTFlowError: No such file, or bytes that are text in none of these encodings.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CTFlowError(f"{path} cannot be read: {error.strerror or error}", "a text file") from error
    stranger = describe_stranger(path)
    if "pointer" in stranger or "web page" in stranger:
        raise CTFlowError(f"{path} {stranger}", "a text file")
    for encoding in _encodings(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if encoding == "cp1252":
            log.warning("%s is not UTF-8 and was read as Windows-1252: check letters with accents", path)
        return text
    raise CTFlowError(
        f"{path} is text in no known encoding", "UTF-8, UTF-16 or Windows-1252", "save it as UTF-8"
    )


def read_table(path: Path | str) -> Table:
    """A CSV in any of these encodings, separated by commas, semicolons, tabs or bars.

    Raises:
        CTFlowError: Unreadable, without a header, a quote that is not closed, or a row with more cells than
            the header.
    """
    path = Path(path)
    text = read_text(path)
    first, _, rest = text.partition("\n")
    separator = ""
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # what Excel writes before it
        separator, text = first.strip()[4], "\n" + rest
    header_line = next((line for line in text.splitlines() if line.strip()), "")
    separator = separator or max(_SEPARATORS, key=header_line.count)
    csv.field_size_limit(_LONGEST_CELL)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise CTFlowError(f"{path} cannot be read as CSV: {error}", "cells in closed quotes") from error
    filled = [(n, cells) for n, row in enumerate(lines, 1) if any(cells := [cell.strip() for cell in row])]
    if not filled:
        raise CTFlowError(f"{path} is empty", "a CSV with a header")
    columns = filled[0][1]
    while not columns[-1]:
        columns.pop()
    twice = {name for name in columns if name and columns.count(name) > 1}
    if twice:
        raise CTFlowError(f"{path} has the column {min(twice)!r} twice", "every column once")
    rows = []
    for number, cells in filled[1:]:
        if any(cells[len(columns) :]):
            raise CTFlowError(
                f"row {number} of {path} has {len(cells)} cells, its header {len(columns)} "
                f"(separated by {separator!r})",
                "as many cells as columns",
                "put text that holds the separator into quotes",
            )
        cells += [""] * (len(columns) - len(cells))
        rows.append((number, dict(zip(columns, cells, strict=False))))
    return Table(path, tuple(columns), tuple(rows))


def _encodings(data: bytes) -> list[str]:
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return ["utf-32"]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ["utf-16"]
    if data[1:2] == b"\0" and data[:1] != b"\0":
        return ["utf-16-le"]
    if data[:1] == b"\0" and data[1:2] not in (b"", b"\0"):
        return ["utf-16-be"]
    return ["utf-8-sig", "cp1252"]
