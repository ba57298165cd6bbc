"""Prompts beside the patterns: controls, which no adapter should change, sentences that name what is stored and ask for
something else, and labelled prompts for a router.

Files under ``patterns/prompts/`` hold ``prompts: {kind: [text, ...]}``; the text stays as it is written. In those that
ask for an item an entry is ``{input: its input, prompt: text}``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from engram_bench.data.items import Item, PatternSet, fill
from engram_bench.errors import UsageError
from engram_bench.shipped import PATTERNS

T = TypeVar("T")
FOLDER = PATTERNS / "prompts"
ROUTING = {  # files of what asks for an item, and of what only looks so
    "labelled": ("routing_positive", "routing_negative"),
    "in own words": ("routing_own_words", "routing_negative"),
    "hard": ("routing_hard_positive", "routing_hard_negative"),
}


@dataclass(frozen=True)
class RoutingPrompt:
    """A prompt, and the input of the item it asks for, if any; `kind`: its category, or what it only looks like."""

    text: str
    kind: str
    input: str | None


def control(each: int | None = None, seed: int = 0) -> list[str]:
    """Prompts that share no key with any pattern: prose, questions, chat, code, other languages.

    Args:
        each: so many of each kind, drawn by seed; None: all.
        seed: another seed, another choice.
    """
    kinds = read(FOLDER / "control.yaml")
    if each is None:
        return [text for texts in kinds.values() for text in texts]
    drawn = [random.Random(f"{seed}:{kind}").sample(texts, each) for kind, texts in kinds.items()]
    return [text for one_of_each in zip(*drawn, strict=True) for text in one_of_each]


def mentions(patterns: PatternSet, count: int) -> list[tuple[str, Item]]:
    """Prompts that name the input of a trained item and ask for something else, each with that item.

    Categories take turns, and so do the sentences within each; no two prompts of a category share an item until all of
    them are used.
    """
    sentences = read(FOLDER / "mentions.yaml")["mentions"]
    seen = [c.split("seen") for c in patterns.categories.values()]
    trained = [sorted(items, key=lambda item: item.id) for items in seen if items]
    found = []
    for n in range(count if trained else 0):
        turn, at = divmod(n, len(trained))
        item = trained[at][turn % len(trained[at])]
        found.append((fill(sentences[(turn + at) % len(sentences)], item.input), item))
    return found


def routing(of: str = "labelled") -> list[RoutingPrompt]:
    """Labelled prompts: those that ask for an item, and those that only look as if they did.

    Args:
        of: a set of `ROUTING`. In ``labelled`` requests are worded as in the pattern files, and otherwise where an
            item is a key; ``in own words`` no two of them are, and what asks for nothing is the same; ``hard`` ones
            mislead both ways, by stored keys mentioned in passing and requests put in unusual ways.
    """
    positive, negative = ROUTING[of]
    asking = _read(FOLDER / f"{positive}.yaml", lambda entry: (entry["prompt"], entry["input"]))
    others = _read(FOLDER / f"{negative}.yaml", lambda text: (str(text), None))
    kinds = [*asking.items(), *others.items()]
    return [RoutingPrompt(text, kind, input) for kind, entries in kinds for text, input in entries]


def read(file: Path) -> dict[str, list[str]]:
    """Texts by kind.

    Raises:
        UsageError: the file is missing or holds something else.
    """
    return _read(file, lambda entry: str(entry["prompt"] if isinstance(entry, dict) else entry))


def _read(file: Path, entry: Callable[[Any], T]) -> dict[str, list[T]]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
        return {kind: list(map(entry, entries)) for kind, entries in content["prompts"].items()}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: not a file of prompts ({error}); restore it from the repository") from error
