"""Facts from a table: CSV, TSV, JSON Lines or Excel, one fact a row, in columns found by their names.

A table has a key and its value, or subject, relation and object: "the RELATION of SUBJECT" is then the key. Other
columns are left alone.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Any

from engram_bench.data.leaks import plain
from engram_bench.data.nodes import unfit
from engram_bench.errors import UsageError

KEYED = (("key", "value"), ("question", "answer"), ("input", "output"), ("prompt", "completion"))
TRIPLE = ("subject", "relation", "object")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".xlsx")
DELIMITERS = ",;\t|"
FEWEST = 2  # questions about one fact need another as the wrong one
# A byte-order mark, the encoding it tells, and what a note calls it.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", ""),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)

Cells = tuple[int, Sequence[Any]]  # a row's number in the file, counted from 1, and its cells


@dataclass(frozen=True)
class Fact:
    """A key, its value, where it was read: "file:line"; and the subject, if the table has a column of subjects."""

    key: str
    value: str
    place: str
    subject: str = ""


def read(file: Path, fewest: int = FEWEST) -> tuple[list[Fact], list[str]]:
    """Read a table of at least `fewest` facts.

    Returns:
        The facts, each once; and notes on what was mended, one line each.

    Raises:
        UsageError: lists all problems of the file, one a line: file, line, what is wrong, how to mend it.
    """
    notes: list[str] = []
    problems: list[str] = []
    rows = _rows(file, notes, problems)
    header = next(rows, None)
    if header is None:
        raise UsageError(
            "\n".join(problems) or f"{file}: empty; write a row of column names, such as key,value, and facts"
        )
    columns = _columns([str(cell) for cell in header[1]], file, header[0])
    facts: dict[str, Fact] = {}
    repeated = 0
    for number, cells in rows:
        place = f"{file}:{number}"
        if len(cells) != len(header[1]):
            problems.append(
                f"{place}: {len(cells)} cells, but {len(header[1])} column names; quote cells that hold the separator"
            )
            continue
        named = [_text(cells[column]) for column in columns]
        if not all(named):
            problems.append(f"{place}: an empty cell; a fact needs its key and its value")
            continue
        fact = _fact(named, place)
        for called, text, field in (("key", fact.key, "input"), ("value", fact.value, "output")):
            if reason := unfit(text, field):
                problems.append(f"{place}: the {called} {reason}")
        known = facts.setdefault(plain(fact.key), fact)
        if known.value != fact.value:
            problems.append(
                f"{place}: {fact.key!r} is {fact.value!r} here and {known.value!r} in {known.place}; keep one"
            )
        repeated += known is not fact
    if problems:
        raise UsageError("\n".join(problems))
    if len(facts) < fewest:
        raise UsageError(f"{file}: {len(facts)} facts; give {fewest} or more")
    if repeated:
        notes.append(f"{repeated} rows repeat a fact and were left out")
    return list(facts.values()), notes


def _fact(named: Sequence[str], place: str) -> Fact:
    if len(named) == len(TRIPLE):
        subject, relation, value = named
        return Fact(f"the {relation} of {subject}", value, place, subject)
    key, value = named
    return Fact(key, value, place)


def _columns(header: Sequence[str], file: Path, line: int) -> list[int]:
    """Places of the columns that make a fact."""
    names = [plain(name).casefold() for name in header]
    for wanted in (TRIPLE, *KEYED):
        if all(names.count(name) == 1 for name in wanted):
            return [names.index(name) for name in wanted]
    found = ", ".join(map(repr, header))
    raise UsageError(f"{file}:{line}: columns are {found}; name them key and value, or subject, relation and object")


def _text(cell: Any) -> str:
    """A cell as text: 3 for the number 3.0, and a date alone for midnight of that day, as a spreadsheet shows them."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, datetime) and cell.time() == time():
        cell = cell.date()
    return "" if cell is None else str(cell).replace("\r\n", "\n").strip()


# --- formats ----------------------------------------------------------------------------------------------------------


def _rows(file: Path, notes: list[str], problems: list[str]) -> Iterator[Cells]:
    """The rows that are not blank, the column names first."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{file}: not a table; use one of {', '.join(SUFFIXES)}, or a pattern file in YAML")
    if suffix == ".xlsx":
        yield from _excel(file)
        return
    text = _decoded(file, notes)
    yield from (
        _json_lines(text, file, problems) if suffix in (".jsonl", ".ndjson") else _csv(text, file, notes, problems)
    )


def _decoded(file: Path, notes: list[str]) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}; check the path") from error
    encoding, called = next(((name, called) for mark, name, called in MARKS if data.startswith(mark)), ("utf-8", ""))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}:{line}: not {called or 'UTF-8'} text; save the table as UTF-8") from error
    if called:
        notes.append(f"read as {called}, by its byte-order mark")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UsageError(f"{file}:{line}: a zero byte; save the table as UTF-8")
    return text


def _csv(text: str, file: Path, notes: list[str], problems: list[str]) -> Iterator[Cells]:
    first = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count) if file.suffix.lower() == ".csv" else "\t"
    if delimiter != "," and file.suffix.lower() == ".csv" and first.count(delimiter):
        notes.append(f"cells are separated by {delimiter!r}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(f"{file}:{line}: {error}; close each quote, and double a quote inside a quoted cell")
            return
        if any(cell.strip() for cell in cells):
            yield line, cells
        line = reader.line_num + 1


def _json_lines(text: str, file: Path, problems: list[str]) -> Iterator[Cells]:
    names: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            problems.append(f"{file}:{number}: not a JSON object ({error}); write one object a line")
            continue
        if not isinstance(record, dict):
            problems.append(f"{file}:{number}: not a JSON object; write one object a line")
            continue
        if any(isinstance(value, (list, dict)) for value in record.values()):
            problems.append(f"{file}:{number}: a value is a list or an object; write it as text")
            continue
        if not names:
            names = list(record)
            yield number, names
        yield number, [record.get(name) for name in names]


def _excel(file: Path) -> Iterator[Cells]:
    try:
        import openpyxl
    except ImportError as error:
        raise UsageError(
            f"{file}: openpyxl reads Excel files; pip install openpyxl, or save the table as CSV"
        ) from error
    try:  # not read_only, which trusts the size that the file states
        sheet = openpyxl.load_workbook(file, data_only=True).worksheets[0]
        rows = list(sheet.iter_rows(values_only=True))
    except Exception as error:  # openpyxl raises KeyError, BadZipFile, InvalidFileException, OSError, IndexError, ...
        raise UsageError(f"{file}: Excel file cannot be read ({error}); save the table as CSV") from error
    for number, cells in enumerate(rows, 1):
        if any(_text(cell) for cell in cells):
            yield number, cells
