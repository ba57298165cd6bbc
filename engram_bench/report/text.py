"""Numbers and foreign text as a reader may see them: rounded, short, and inert in Markdown and on a terminal.

A `Section` is a part of a report before it is Markdown or HTML.
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

Show = Callable[..., str]  # text from data or a model made fit for one kind of page; a second argument is its length


@dataclass(frozen=True)
class Section:
    """A titled table and the prose around it, in the order of the fields, made of text that is fit for its page.

    Attributes:
        folded: what stands for the table where it is folded away; empty where it is shown.
    """

    title: str
    intro: str = ""
    points: Sequence[str] = ()
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    folded: str = ""
    note: str = ""


def stands_out(cell: str) -> bool:
    """Whether a cell is set in bold: a pooled group, or what got worse."""
    return is_pooled(cell) or cell == "regressed"


def inert(text: str) -> str:
    """Text with a dot for every control character, so that none of it steers a terminal."""
    return "".join("·" if unicodedata.category(ch)[0] == "C" else ch for ch in text)


def short(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text on one line, without control characters, cut where it is longer."""
    text = inert(re.sub(r"[\r\n]+", " ⏎ ", text.strip()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def safe(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text from data or a model as one inert Markdown table cell: short, and no markup."""
    text = html.escape(short(text, longest), quote=False)
    text = text.replace("www.", "www&#46;")  # GitHub makes a link of a bare www.
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
