"""Whether a memory should speak at all, judged on the user's text by rules that know no key.

The other way to tell is to know the keys: `KeyIndex.find`, which a memory of ``span: key`` does anyway. Both are
measured on labelled prompts. The rules look for four shapes: a key with its prefix ("CAPITAL:France"), a style and a
value ("octal: 9"), a described thing that a book of reference would name, and a line of code that breaks off, is
plainly wrong or comes with a request to end or mend it. They were written on development prompts
(``routing_development_*.yaml``) and judged on others that were asked once, see docs/method.md. `routing_rules`
holds them as data.
"""

from __future__ import annotations

import keyword
import re

from engram_bench.memory import routing_rules as patterns

THRESHOLD = 0.5
FAR = 400  # characters around a description that are looked at


def _any(*fragments: str) -> str:
    return f"(?:{'|'.join(fragments)})"


# --- A key, or a style and a value
KEY = re.compile(
    rf"(?<![\w:/-])(?!{_any(*patterns.LABELS)}:)"
    r"[A-Z][A-Z_]{2,}:(?=[^\s:/])(?!\S{0,200}:\S)(?!(?:one|an?|the|no|please|see)\b)"  # at once, no a:b:c and no prose
)
STYLE = re.compile(
    rf"\b{_any(*patterns.NUMBER_STYLES)}: (?=[\"'(\[]?\S{{0,12}}\d|\w{{1,12}} \d)"
    rf"|\b{_any(*patterns.TEXT_STYLES)}: (?!{_any(*patterns.PROSE)}\b(?!-))\S"
    rf"|\b(?-i:{_any(*patterns.NAME_STYLES)}: [A-Z]\w+ [A-Z])",
    re.IGNORECASE,
)

# --- A described thing
NOUN = _any(*patterns.NOUNS)
WORDS = r"(?:(?!(?:the|an?|of|and)\b)[\w'+#.-]+ ){0,3}?"  # before a noun, none of which begins or joins another
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
IN_SMALL = re.compile(DESCRIPTION.pattern, re.IGNORECASE)  # for who writes without capitals, names included
ASKS, OPEN = (re.compile(_any(*p), re.IGNORECASE) for p in (patterns.ASKS, patterns.OPEN))
OWN = re.compile(_any(*patterns.OWN))
STOP = re.compile(r"[:,.;!=–—→\"'>(-] ?$")  # what comes after it stands by itself
CLAUSE_END = re.compile(r"[,;?!](?: |$)|[.?!]+ | [-–=] | (?:when|if|because|so|but) ")
STATES = re.compile(rf"\b{_any(*patterns.STATES)}\b(?!.*\b(?:who|what|which)\b|\W*$)")  # "is called what?" asks
RELATIVE = re.compile(r"the (?:year|(?:[\w-]+ ){1,4}(?:that|who|whose)) ")  # its own verb is no statement

# --- Code
UNFINISHED = re.compile(_any(*patterns.UNFINISHED).replace("<CUT>", _any(*patterns.CUT)))
OPENER, WRONG, CODE, FOREIGN = (
    re.compile(_any(*p)) for p in (patterns.OPENER, patterns.WRONG, patterns.CODE, patterns.FOREIGN)
)
EXPLAIN, MEND = (re.compile(_any(*p), re.IGNORECASE) for p in (patterns.EXPLAIN, patterns.MEND))
NAMES = re.compile(r'"[^"]*"|(?<![\w.])[\w.]{1,80}\(')  # quotes and calls: rest() asks for no rest
# Two neighbouring letters of a keyword exchanged, as in improt; those that give a word are left out
KEYWORDS = {word for word in [*keyword.kwlist, "print", "range"] if len(word) > 2}
SWAPPED = {k[:i] + k[i + 1] + k[i] + k[i + 2 :] for k in KEYWORDS for i in range(len(k) - 1)}
MISSPELT = SWAPPED - KEYWORDS - {"arise", "form", "fro"}
WORD = re.compile(r"\w{5,}|\w{3,4}(?=:| \w+\()")  # short ones, which may be words of a language, as code has them


def _asks_for(text: str, start: int, asks: bool) -> bool:
    """Whether what is described from ``start`` on is asked for, if the text ``asks`` at all, or stands by itself."""
    before = text[max(0, start - FAR) : start]
    clause = CLAUSE_END.split(text[start : start + FAR], maxsplit=1)[0]
    if OPEN.search(CLAUSE_END.split(before)[-1] + clause) or OWN.search(clause):
        return False
    if before.strip("\"'( "):
        return asks or bool(STOP.search(before))
    return text.endswith("?") or bool(RELATIVE.match(clause)) or not STATES.search(clause)


def _asks_code(text: str) -> bool:
    """Whether a line of code breaks off, is wrong as Python, or is to be ended or mended."""
    if EXPLAIN.search(text) or FOREIGN.search(text):
        return False
    unbalanced = OPENER.search(text) and any(text.count(a) > text.count(b) for a, b in ("()", "[]", "{}"))
    misspelt = not MISSPELT.isdisjoint(WORD.findall(text))
    if unbalanced or misspelt or UNFINISHED.search(text) or WRONG.search(text):
        return True
    return bool(CODE.search(text) and MEND.search(NAMES.sub("", text)))


def confidence(text: str) -> float:
    """How sure the rules are that a text asks for something stored.

    Args:
        text: the user's own words, without the chat template.

    Returns:
        1.0 where a key such as ``CAPITAL:France`` stands in it; 0.7 where it asks for a described thing, for code to
        be completed or put right or for a value in a named style; 0.0 otherwise. From `THRESHOLD` on a memory is
        consulted.
    """
    text = text.strip()
    if KEY.search(text):
        return 1.0
    asks, descriptions = bool(ASKS.search(text)), IN_SMALL if text.islower() else DESCRIPTION
    described = any(_asks_for(text, found.start(), asks) for found in descriptions.finditer(text))
    return 0.7 if described or STYLE.search(text) or _asks_code(text) else 0.0
