"""Formats numbers, and makes text from data or a model safe to show in Markdown and on a terminal.

A `Section` is a part of a report before rendering to Markdown or HTML.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engram_bench.records import is_pooled

LONGEST_TEXT = 90

Show = Callable[..., str]  # (text[, longest]) -> text that is safe in one kind of page


@dataclass(frozen=True)
class Section:
    """A titled table and its prose, rendered in the order of the fields; all text is already safe for its page.

    Attributes:
        folded: summary line of a folded table; empty if the table is always visible.
    """

    title: str
    intro: str = ""
    points: Sequence[str] = ()
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    folded: str = ""
    note: str = ""


def stands_out(cell: str) -> bool:
    """Whether a table cell is bold: a pooled group or a regression."""
    return is_pooled(cell) or cell == "regressed"


def inert(text: str) -> str:
    """Replace every control character by a dot, because a terminal would obey it."""
    return "".join("·" if unicodedata.category(ch)[0] == "C" else ch for ch in text)


def short(text: str, longest: int = LONGEST_TEXT) -> str:
    """Put text on one line, without control characters, cut at `longest` characters."""
    text = inert(re.sub(r"[\r\n]+", " ⏎ ", text.strip()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def safe(text: str, longest: int = LONGEST_TEXT) -> str:
    """Escape text from data or a model for a Markdown table cell, and shorten it."""
    text = html.escape(short(text, longest), quote=False)
    text = text.replace("www.", "www&#46;")  # GitHub turns a bare www. into a link
    return re.sub(r"([\\`*_\[\]|~$@:#])", r"\\\1", text).replace("&\\#", "&#")


def percent(value: float) -> str:
    """0.975 -> 97.5%."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of rates in percentage points, signed."""
    return f"{100 * value:+.1f}"


def rate(cell: Mapping[str, Any]) -> str:
    """97.5% [93–99]"""
    return f"{percent(cell['rate'])} [{100 * cell['low']:.0f}–{100 * cell['high']:.0f}]"


def p_value(p: float) -> str:
    """Three decimals, never zero."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
