"""Numbers and foreign text as a reader may see them: rounded, short, and inert in Markdown and on a terminal."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

LONGEST_TEXT = 90


def inert(text: str) -> str:
    """Text with a dot for every control character, so that none of it steers a terminal."""
    return "".join("·" if unicodedata.category(ch)[0] == "C" else ch for ch in text)


def safe(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text from data or a model as one inert Markdown table cell: no markup, no line break, no control character."""
    text = inert(re.sub(r"[\r\n]+", " ⏎ ", text.strip()))
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    text = html.escape(text, quote=False).replace("www.", "www&#46;")  # GitHub makes a link of a bare www.
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
    """Short and never zero."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def table(rows: Iterable[Sequence[Any]], headers: Sequence[str]) -> str:
    """A GitHub Markdown table; the first column left, the rest as they come."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
