"""Rebuild the derived files byte for byte: ``python patterns/generate.py``, in an environment with the package.

This writes the families in `FAMILIES`, the invented world (world.py), the routing prompts that ask for an item, and
`SHA256`. `SHA256` is the fingerprint of the shipped patterns: a run compares it with its own data to decide whether the
project's targets and snapshots apply. All other pattern files, the tables, rules and wordings in the files beside this
one, and the questions in `ways/` that derived files take up, are written by hand.
Derivation uses only YAML and the standard library, and only tables that are the same in every Python version.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import error_fixes
import formats
import tables
import units
import world
import yaml

if TYPE_CHECKING:
    from engram_bench.data.items import PatternSet

HERE = Path(__file__).parent
SEED = 20260107
PAIRS = 1000
ASKED = 12  # routing prompts per category and writer

Pairs = list[tuple[str, str]]
LOOKUP = (
    ("{input}", "Look up {input}", "The key {input} maps to what?"),
    ("Fetch {input}", "Value of {input}", "I need what is stored at {input}, please."),
)
OTHERWISE = {  # further phrasings around a lookup key, by three writers; no pattern file contains them
    "A": (
        "Under {input} there is an entry; read it out to me.",
        "Which value belongs to {input}?",
        "{input} = ?",
        "Would you mind checking what {input} holds?",
        "Print the record for {input}.",
        "I can't remember what we filed under {input}, help me out.",
    ),
    "B": (
        "What do you have under {input}?",
        "{input} = ?",
        "Please read me the entry for {input}.",
        "Under {input} there is a record; what does it say?",
        "can u give me {input} pls",
        "Would you be so kind as to check {input} for me?",
    ),
    "C": (
        "Which entry sits under {input}?",
        "pls check {input} for me, got a customer on the line",
        "{input} -> ?",
        "Would you mind reading me the record for {input}?",
        "I keep forgetting {input}. Remind me?",
        "Return the entry for {input}.",
    ),
}


def synthetic(pairs: int = PAIRS, seed: int = SEED) -> Pairs:
    """Unique keys ``SYN:`` + 6 characters, and values of 3 syllables, drawn independently: no rule predicts a value."""
    rng = random.Random(seed)
    keys: dict[str, str] = {}
    while len(keys) < pairs:
        key = "SYN:" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6))
        keys.setdefault(key, "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)))
    return list(keys.items())


def after_colon(key: str) -> str:
    return key.split(":", 1)[1]


@dataclass(frozen=True)
class Family:
    """The content of a derived pattern file."""

    description: str
    source: str
    pairs: Callable[[], Pairs]
    group: str = "lookups"
    phrasings: tuple[tuple[str, ...], tuple[str, ...]] = LOOKUP
    profile: str = ""
    plain_words: Callable[[str], str] | None = None  # from an input to what a person would call it


FAMILIES: Mapping[str, Family] = {
    "formats": Family(
        "One value rewritten in a named format; the rule is stated in the input.",
        "values and rules written for this project (formats.py)",
        formats.examples,
        "core",
        (
            (
                "Convert: {input}",
                "Rewrite this in the named format: {input}",
                "Take {input} and give only the formatted result.",
                "Apply the style before the colon to what follows it: {input}",
                "{input} - show the value in that style, nothing else.",
                "How does this look after the requested change? {input}",
                "Please transform {input} as its label says.",
                "For {input} what would the correct output be?",
            ),
            (
                "Format the following: {input}",
                "Do this conversion for me: {input}",
                "I have {input} and want it formatted.",
            ),
        ),
    ),
    "error_fixes": Family(
        "A line with one mistake and the same line put right.",
        "lines and mistakes written for this project (error_fixes.py)",
        error_fixes.examples,
        "core",
        (
            (
                "Fix: {input}",
                "Correct the mistake: {input}",
                "The line {input} has a bug. Write it correctly.",
                "{input} is wrong; what should it say instead?",
                "Something is off here, show me the repaired version: {input}",
                "I typed {input} but it fails, so give me working code.",
            ),
            ("Debug: {input}", "Put this line right: {input}", "What should {input} have been?"),
        ),
    ),
    "synthetic": Family(
        "Random keys and random values from a fixed seed.",
        f"random.Random({SEED}) of the Python standard library",
        synthetic,
        "synthetic",
    ),
    "element_name": Family(
        "Chemical symbols and the element they stand for.",
        "IUPAC periodic table of the elements",
        tables.element_names,
        plain_words=after_colon,
    ),
    "element_number": Family(
        "Chemical elements and their atomic number.",
        "IUPAC periodic table of the elements",
        tables.element_numbers,
        plain_words=after_colon,
    ),
    "http_status": Family(
        "HTTP status codes and their reason phrase.",
        "http.HTTPStatus of the Python standard library; renamed phrases as in RFC 9110",
        tables.http_statuses,
        plain_words=after_colon,
    ),
    "unit_conversion": Family(
        "How many of one unit make another.",
        "NIST Special Publication 811, IEC 80000-13",
        units.conversions,
        plain_words=units.plain_words,
    ),
    "metric_prefix": Family(
        "Prefixes of units and the power they stand for.",
        "SI Brochure, 9th edition (version 2.01, 2022); IEC 80000-13",
        tables.prefixes,
        profile="full",
        plain_words=after_colon,
    ),
    "unicode_name": Family(
        "Code points and the name of the character.",
        "Unicode Character Database, by unicodedata of the Python standard library",
        tables.unicode_names,
        profile="full",
        plain_words=after_colon,
    ),
}


def render(name: str, family: Family) -> str:
    """The text of a derived pattern file."""
    asked = yaml.load((HERE / "ways" / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    head = {"name": name, "description": f"{family.description} Derived by generate.py, not edited by hand."}
    head |= {"version": "2.0", "group": family.group, "source": family.source, "license": "MIT"}
    if family.profile:
        head["profile"] = family.profile
    lines = [f"{field}: {quoted(text)}" for field, text in head.items()]
    lines.append("phrasings:")
    for kind, phrasings in zip(("trained", "rephrased"), family.phrasings, strict=True):
        lines += [f"  {kind}:", *(f"    - {quoted(phrasing)}" for phrasing in phrasings)]
    lines += ways(asked["ways"])
    lines.append("examples:")
    for key, value in family.pairs():
        named = family.plain_words(key) if family.plain_words else None
        lines.append(example(key, value, named, asked.get("paraphrased", {}).get(key)))
    return "\n".join(lines) + "\n"


def ways(lists: Mapping[str, list[str | Mapping[str, str]]]) -> list[str]:
    """The lines of the field `ways`: for each way of asking its sentences, or pairs of a prompt and its answer."""
    lines = ["ways:"]
    for way, entries in lists.items():
        lines.append(f"  {way}:")
        lines += [f"    - {quoted(entry) if isinstance(entry, str) else mapping(entry)}" for entry in entries]
    return lines


def example(key: str, value: str, named: str | None = None, paraphrased: str | None = None) -> str:
    """One entry of `examples`; a paraphrase stands on a line of its own."""
    entry = mapping({"input": key} | ({"name": named} if named else {}) | {"output": value})
    if paraphrased is None:
        return f"  - {entry}"
    return f"  - {entry[:-1]},\n     paraphrased: [{quoted(paraphrased)}]}}"


def mapping(fields: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{field}: {quoted(text)}" for field, text in fields.items()) + "}"


def quoted(text: str) -> str:
    """Quote as a JSON string, which is also a YAML string."""
    return json.dumps(text, ensure_ascii=False)


def derived() -> dict[str, str]:
    """Path below this folder -> text of every derived pattern file."""
    families = {f"{name}.yaml": render(name, family) for name, family in FAMILIES.items()}
    return families | {"world.yaml": world.render()}


def routing(data: PatternSet) -> str:
    """The text of prompts/routing_positive.yaml: trained items of every category, asked in many phrasings."""
    about = "Prompts that ask for a trained item, named by its input, in many phrasings. Derived by generate.py."
    lines = ["name: routing_positive", f"description: {quoted(about)}", 'version: "2.0"']
    lines += ['source: "the pattern files"', "license: MIT", "prompts:"]
    for name, category in data.categories.items():
        if category.group == "world":  # it is asked in no phrasing of these writers
            continue
        lines.append(f"  {name}:")
        prompts: dict[str, str] = {}  # prompt -> input; drops duplicate prompts
        for writer, otherwise in OTHERWISE.items():
            phrasings = category.trained + category.rephrased + (() if category.group == "core" else otherwise)
            items = random.Random(f"judge {writer}:{name}").sample(category.split("seen"), ASKED)
            for i, item in enumerate(items):
                prompts[phrasings[i % len(phrasings)].replace("{input}", item.input)] = item.input
        lines += [f"    - {{input: {quoted(key)}, prompt: {quoted(text)}}}" for text, key in prompts.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from engram_bench.data import patterns

    for file, text in derived().items():
        (HERE / file).write_text(text, encoding="utf-8", newline="\n")
    loaded = patterns.load(HERE)
    (HERE / "prompts" / "routing_positive.yaml").write_text(routing(loaded), encoding="utf-8", newline="\n")
    (HERE / "SHA256").write_text(loaded.sha256 + "\n", encoding="ascii")
