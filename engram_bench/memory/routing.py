"""Rules that decide from the user's text, without knowing any key, whether a memory should act.

The alternative is to search for known keys (`KeyIndex.find`), as a memory with ``span: key`` does anyway. Both are
measured on labelled prompts. The rules look for four patterns: a key with its prefix ("CAPITAL:France"); a style and a
value ("octal: 9"); a description of something that a reference book would name; and a line of code that is unfinished,
plainly wrong, or comes with a request to complete or fix it. They were developed on ``routing_development_*.yaml`` and
evaluated once on other prompts, see docs/method.md. `routing_rules` holds their regular expressions.
"""

from __future__ import annotations

import keyword
import re

from engram_bench.memory import routing_rules as patterns

THRESHOLD = 0.5
FAR = 400  # characters to read before and after the start of a description


def _any(*fragments: str) -> str:
    return f"(?:{'|'.join(fragments)})"


# --- A key, or a style and a value
KEY = re.compile(
    rf"(?<![\w:/-])(?!{_any(*patterns.LABELS)}:)"
    r"[A-Z][A-Z_]{2,}:(?=[^\s:/])(?!\S{0,200}:\S)(?!(?:one|an?|the|no|please|see)\b)"  # no space, a:b:c or prose
)
STYLE = re.compile(
    rf"\b{_any(*patterns.NUMBER_STYLES)}: (?=[\"'(\[]?\S{{0,12}}\d|\w{{1,12}} \d)"
    rf"|\b{_any(*patterns.TEXT_STYLES)}: (?!{_any(*patterns.PROSE)}\b(?!-))\S"
    rf"|\b(?-i:{_any(*patterns.NAME_STYLES)}: [A-Z]\w+ [A-Z])",
    re.IGNORECASE,
)

# --- A described thing
NOUN = _any(*patterns.NOUNS)
WORDS = r"(?:(?!(?:the|an?|of|and)\b)[\w'+#.-]+ ){0,3}?"  # up to 3 words before a noun; not the, a, an, of, and
MOST = r"(?:first|last|only|next|(?:most|least) \w+|(?!(?:b|n?ear|lat|t|r|gu|for|inter)est)\w+est)"
SHAPES = (
    rf"year {_any(*patterns.YEARS)}",
    rf"{_any(*patterns.MAKERS)} of (?=[^.,;?!]{{0,30}}(?:\b[A-Z]|\bfirst ))",
    rf"(?:\w+ )?{_any(*patterns.PLACES)} (?:of (?:the )?[A-Z]|that|whose|shaped|with|where)",
    rf"{MOST} {WORDS}{_any(NOUN, *patterns.UTMOST)}\b(?! (?:you|I|we|she|he|they)\b)",
    rf"(?!phone|room|house|account|serial|rest|best){WORDS}{NOUN} {_any(*patterns.LINKS)}\b",
    rf"(?:[A-Z][\w.]+|absolute|standard) (?:[\w-]+ )?{_any(NOUN, *patterns.BRANDED)}\b",  # the SI unit of
    *patterns.WHOLE,
)
DESCRIPTION = re.compile(rf"\b[Tt]he {_any(*SHAPES)}")
IN_SMALL = re.compile(DESCRIPTION.pattern, re.IGNORECASE)  # for texts all in lower case, names included
ASKS, OPEN = (re.compile(_any(*p), re.IGNORECASE) for p in (patterns.ASKS, patterns.OPEN))
OWN = re.compile(_any(*patterns.OWN))
STOP = re.compile(r"[:,.;!=–—→\"'>(-] ?$")  # a description after this stands by itself
CLAUSE_END = re.compile(r"[,;?!](?: |$)|[.?!]+ | [-–=] | (?:when|if|because|so|but) ")
STATES = re.compile(rf"\b{_any(*patterns.STATES)}\b(?!.*\b(?:who|what|which)\b|\W*$)")  # "is called what?" asks
RELATIVE = re.compile(r"the (?:year|(?:[\w-]+ ){1,4}(?:that|who|whose)) ")  # its verb makes no statement

# --- Code
UNFINISHED = re.compile(_any(*patterns.UNFINISHED).replace("<CUT>", _any(*patterns.CUT)))
OPENER, WRONG, CODE, FOREIGN = (
    re.compile(_any(*p)) for p in (patterns.OPENER, patterns.WRONG, patterns.CODE, patterns.FOREIGN)
)
EXPLAIN, MEND = (re.compile(_any(*p), re.IGNORECASE) for p in (patterns.EXPLAIN, patterns.MEND))
NAMES = re.compile(r'"[^"]*"|(?<![\w.])[\w.]{1,80}\(')  # ignored: rest() does not ask for the rest
# Keywords with two neighbouring letters swapped, as in improt, except those that are English words
KEYWORDS = {word for word in [*keyword.kwlist, "print", "range"] if len(word) > 2}
SWAPPED = {k[:i] + k[i + 1] + k[i] + k[i + 2 :] for k in KEYWORDS for i in range(len(k) - 1)}
MISSPELT = SWAPPED - KEYWORDS - {"arise", "form", "fro"}
WORD = re.compile(r"\w{5,}|\w{3,4}(?=:| \w+\()")  # 3 or 4 letters only where code has them, not prose


def _asks_for(text: str, start: int, asks: bool) -> bool:
    """Whether the thing described at ``start`` is requested or stands alone. ``asks``: the text has a request."""
    before = text[max(0, start - FAR) : start]
    clause = CLAUSE_END.split(text[start : start + FAR], maxsplit=1)[0]
    if OPEN.search(CLAUSE_END.split(before)[-1] + clause) or OWN.search(clause):
        return False
    if before.strip("\"'( "):
        return asks or bool(STOP.search(before))
    return text.endswith("?") or bool(RELATIVE.match(clause)) or not STATES.search(clause)


def _asks_code(text: str) -> bool:
    """Whether a line of code is unfinished, is wrong Python, or comes with a request to complete or fix it."""
    if EXPLAIN.search(text) or FOREIGN.search(text):
        return False
    unbalanced = OPENER.search(text) and any(text.count(a) > text.count(b) for a, b in ("()", "[]", "{}"))
    misspelt = not MISSPELT.isdisjoint(WORD.findall(text))
    if unbalanced or misspelt or UNFINISHED.search(text) or WRONG.search(text):
        return True
    return bool(CODE.search(text) and MEND.search(NAMES.sub("", text)))


def confidence(text: str) -> float:
    """How sure the rules are that a text asks for something that a memory stores.

    Args:
        text: the user's own words, without the chat template.

    Returns:
        1.0 if the text contains a key such as ``CAPITAL:France``; 0.7 if it asks for a described thing, for code to be
        completed or fixed, or for a value in a named style; 0.0 otherwise. The memory acts from `THRESHOLD` on.
    """
    text = text.strip()
    if KEY.search(text):
        return 1.0
    asks, descriptions = bool(ASKS.search(text)), IN_SMALL if text.islower() else DESCRIPTION
    described = any(_asks_for(text, found.start(), asks) for found in descriptions.finditer(text))
    return 0.7 if described or STYLE.search(text) or _asks_code(text) else 0.0
