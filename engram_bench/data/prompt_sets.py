"""Prompts that are not questions of the patterns.

- Control prompts, whose answers no adapter should change.
- Prompts that name a stored key but ask for something else.
- Passages: running text in which keys occur and nothing is asked.
- Labelled prompts, to evaluate routers.

Files under ``patterns/prompts/`` hold ``prompts: {kind: [text, ...]}``; texts are used unchanged. For prompts that ask
for an item, each entry is ``{input: the item's input, prompt: text}``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import yaml

from engram_bench.data.items import Item, PatternSet, fill
from engram_bench.errors import UsageError
from engram_bench.shipped import PATTERNS

T = TypeVar("T")
FOLDER = PATTERNS / "prompts"
FITTED = 1000  # prompts of each kind that fit a router
ROUTING = {  # set -> files of prompts that ask for an item, and of prompts that ask for none
    "labelled": ("routing_positive", "routing_negative"),
    "in own words": ("routing_own_words", "routing_negative"),
    "hard": ("routing_hard_positive", "routing_hard_negative"),
}


@dataclass(frozen=True)
class Passage:
    """Running text in which `keys`, the inputs of trained items, occur although nothing is asked.

    `kind` is "prose with keys" or "code with keys".
    """

    kind: str
    text: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class RoutingPrompt:
    """A prompt, and the input of the item it asks for, or None. `kind` is the item's category, or the kind of text."""

    text: str
    kind: str
    input: str | None


def control(each: int | None = None, seed: int = 0) -> list[str]:
    """Prompts that share no key with any pattern: prose, questions, chat, code, other languages.

    Args:
        each: number of prompts per kind, drawn by seed; None: all.
        seed: a different seed draws different prompts.
    """
    kinds = read(FOLDER / "control.yaml")
    if each is None:
        return [text for texts in kinds.values() for text in texts]
    drawn = [random.Random(f"{seed}:{kind}").sample(texts, each) for kind, texts in kinds.items()]
    return [text for one_of_each in zip(*drawn, strict=True) for text in one_of_each]


def mentions(patterns: PatternSet, count: int) -> list[tuple[str, Item]]:
    """Prompts that name a trained item but ask for something else, each paired with that item.

    Half the prompts of subjects with a name of their own have the name alone. Items and sentences take turns in random
    order; none repeats before all are used.
    """
    rng = random.Random("mentions")
    sentences = list(read(FOLDER / "mentions.yaml")["mentions"])
    trained = sorted(chain.from_iterable(c.split("seen") for c in patterns.categories.values()), key=lambda i: i.id)
    rng.shuffle(sentences)
    rng.shuffle(trained)
    found = []
    for n, item in zip(range(count), cycle(trained)):
        named = rng.choice((item.names[0], item.input)) if item.names else item.input
        found.append((fill(sentences[n % len(sentences)], named), item))
    return found


def passages(patterns: PatternSet, each: int | None = None, seed: int = 0) -> list[Passage]:
    """Prose and code with the inputs of trained items where such a text may have them.

    Categories take turns; each draws its trained items by seed, and none twice before all are used.

    Args:
        patterns: the items of the run.
        each: number of passages of each kind, the first ones; None: all.
        seed: a different seed puts other items into the same passages.

    Returns:
        The passages; none if no item is trained.
    """
    trained = [sorted(c.split("seen"), key=lambda item: item.id) for c in patterns.categories.values()]
    drawn = [random.Random(f"{seed}:{items[0].category}").sample(items, len(items)) for items in trained if items]
    if not drawn:
        return []
    keys = (item.input for item in chain.from_iterable(zip(*map(cycle, drawn), strict=True)))
    found = []
    for kind, texts in read(FOLDER / "passages.yaml").items():
        for first, *rest in (text.split("{input}") for text in texts[:each]):
            named = tuple(islice(keys, len(rest)))
            text = first + "".join(key + part for key, part in zip(named, rest, strict=True))
            found.append(Passage(kind, text, named))
    return found


def routing(of: str = "labelled") -> list[RoutingPrompt]:
    """Labelled prompts: requests for an item, and prompts that ask for none, although many look like requests.

    Args:
        of: a set of `ROUTING`. In ``labelled``, requests use the phrasings of the pattern files, and other phrasings
            outside the core categories. In ``in own words``, each request has a wording of its own; the prompts that
            ask for none are those of ``labelled``. ``hard`` misleads both ways: unusual requests, and stored keys
            mentioned in passing.
    """
    positive, negative = ROUTING[of]
    asking = _read(FOLDER / f"{positive}.yaml", lambda entry: (entry["prompt"], entry["input"]))
    negatives = _read(FOLDER / f"{negative}.yaml", lambda text: (str(text), None))
    kinds = [*asking.items(), *negatives.items()]
    return [RoutingPrompt(text, kind, input) for kind, entries in kinds for text, input in entries]


def routing_development() -> tuple[list[str], list[str]]:
    """Prompts to fit a router on, none of which judges one: those that ask for an item, and those that ask for none.

    Of each, `FITTED` are drawn.
    """
    found = []
    for label in ("positive", "negative"):
        texts = list(chain.from_iterable(read(FOLDER / f"routing_development_{label}.yaml").values()))
        found.append(random.Random("routing").sample(texts, min(FITTED, len(texts))))
    return found[0], found[1]


def read(file: Path) -> dict[str, list[str]]:
    """The texts of a prompt file, by kind.

    Raises:
        UsageError: the file is missing or is not a prompt file.
    """
    return _read(file, lambda entry: str(entry["prompt"] if isinstance(entry, dict) else entry))


def _read(file: Path, entry: Callable[[Any], T]) -> dict[str, list[T]]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
        return {kind: list(map(entry, entries)) for kind, entries in content["prompts"].items()}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: not a prompt file ({error}); restore it from the repository") from error
