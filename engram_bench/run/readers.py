"""Opponents that train nothing: how they ask the untouched model, as pure functions of a question and the run's facts.

`prompted` shows solved examples as earlier turns: they tell the form of an answer, and no fact that is asked for.
`retrieval` adds the facts that BM25 finds for the question, `oracle` the right fact alone. `dictionary` answers by
exact key without the model.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from engram_bench.data.items import Category, Item, PatternSet
from engram_bench.data.questions import Question
from engram_bench.errors import UsageError
from engram_bench.prompts import Prompt, Turns
from engram_bench.variants.kinds import KINDS

EXAMPLES = 5  # solved examples before a question
FOUND = 5  # facts that BM25 gives to a question
KNOWN = "Known: {fact}"  # a line after the question; the best of five forms, see docs/method.md


class Asked(NamedTuple):
    """What a variant does with a question.

    Attributes:
        text: the last user turn.
        earlier: the turns before it.
        answer: the answer, if it needs no model.
    """

    text: str
    earlier: Turns = ()
    answer: str | None = None


@dataclass(frozen=True)
class Facts:
    """The trained items of a run; `seed` draws the solved examples."""

    patterns: PatternSet
    seed: int = 0

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The trained items of all categories."""
        return tuple(item for category in self.patterns.categories.values() for item in category.split("seen"))

    @cached_property
    def size(self) -> int:
        """Bytes of all facts as text, one `document` a line in UTF-8."""
        return sum(len(document(item).encode()) + 1 for item in self.items)

    @cached_property
    def by_input(self) -> dict[str, Item]:
        """The trained items by their keys."""
        return {item.input: item for item in self.items}

    @cached_property
    def keys(self) -> re.Pattern[str]:
        """Matches any key as whole words, the longest first."""
        longest_first = sorted(self.by_input, key=len, reverse=True)
        return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")

    def named(self, text: str) -> list[Item]:
        """The facts whose keys stand in a text to the letter, in its order; of overlapping keys the longest."""
        found = (match[0] for match in self.keys.finditer(text)) if self.items else ()
        return [self.by_input[key] for key in dict.fromkeys(found)]

    @cached_property
    def index(self) -> Any:
        """The BM25 index of all facts, each a `document`."""
        with not_importable("jax"):  # bm25s would start it, and JAX takes three quarters of a GPU's memory
            import bm25s

        index = bm25s.BM25()
        index.index([words(document(item)) for item in self.items], show_progress=False)
        return index

    def ranked(self, text: str) -> list[Item]:
        """Up to `FOUND` facts by their BM25 score for a text, best first; facts that share no word are left out."""
        known = [word for word in dict.fromkeys(words(text)) if word in self.index.vocab_dict]
        if not known:
            return []
        scores = self.index.get_scores(known)
        best = np.argsort(-scores, kind="stable")[:FOUND]
        return [self.items[i] for i in best if scores[i] > 0]


@contextmanager
def not_importable(module: str) -> Iterator[None]:
    """Inside the context, importing a module that is not loaded yet raises ImportError."""
    absent = module not in sys.modules
    if absent:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]


class Fitted(NamedTuple):
    """What is asked, its prompt, and the number of solved examples for which the context has room."""

    asked: Asked
    prompt: Prompt
    most: int


class Reader(Protocol):
    """How a kind of variant asks: a pure function of a question, the run's facts and the most solved examples."""

    def __call__(self, question: Question, facts: Facts, most: int) -> Asked: ...


def document(item: Item) -> str:
    """A fact as text."""
    return f"{item.input} = {item.output}"


def words(text: str) -> list[str]:
    """The words of a text for BM25: runs of letters and digits without case, and symbols; without any, characters."""
    return re.findall(r"[^\W_]+|[^\x00-\x7f]", text.casefold()) or [letter for letter in text if not letter.isspace()]


def reader_of(kind: str) -> Reader | None:
    """The reader of a kind of variant; None if the model is asked the question alone."""
    module, _, name = KINDS[kind].reader.partition(":")
    return cast(Reader, getattr(import_module(module), name)) if module else None


def fitted(reader: Reader, question: Question, facts: Facts, encode: Callable[..., Prompt], room: int) -> Fitted:
    """What a reader asks, with as many solved examples, up to `EXAMPLES`, as fit in `room` tokens.

    Raises:
        UsageError: the prompt does not fit even without examples.
    """
    for most in range(EXAMPLES, -1, -1):
        asked = reader(question, facts, most)
        prompt = encode(asked.text, earlier=asked.earlier)
        if len(prompt.ids) <= room or asked.answer is not None:
            return Fitted(asked, prompt, most)
    what = f"{question.item.place}: its prompt has {len(prompt.ids)} tokens, and the model has room for {room}"
    raise UsageError(f"{what}; shorten the facts, or leave out the variant")


def examples(category: Category, asked: Sequence[Item], most: int, seed: int) -> list[Item]:
    """Solved examples for a question: items of its category, drawn by seed, all with different outputs.

    Items that the run does not ask come first, then the trained ones. All questions get the same examples, so that
    their prompts share these turns. If an asked item is among them, or its output is, the question gets other ones.
    """
    rng = random.Random(f"{seed}:{category.name}")
    drawn = [item for some in (category.spare, category.split("seen")) for item in rng.sample(some, len(some))]
    by_output: dict[str, Item] = {}
    for item in drawn:
        by_output.setdefault(_plain(item.output), item)
    distinct = list(by_output.values())
    outputs = {_plain(item.output) for item in asked}
    told = [item for item in distinct if item in asked or _plain(item.output) in outputs]
    if set(told) & set(distinct[:EXAMPLES]):
        distinct = distinct[EXAMPLES:] + distinct[:EXAMPLES]
    return [item for item in distinct if item not in told][:most]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _solved(question: Question, facts: Facts, most: int, ask: Callable[[Item, str], str]) -> Turns:
    """Earlier turns: each example's own `seen` question, as `ask` puts it, and its output."""
    category = facts.patterns.categories[question.item.category]
    spare = [item for item in category.spare if item.input in question.prompt]
    asked = [question.item, *facts.named(question.prompt), *spare]
    chosen = examples(category, asked, most, facts.seed)
    return tuple((ask(item, category.question(item, "seen")[1]), item.output) for item in chosen)


def with_facts(found: Sequence[Item], prompt: str) -> str:
    """A user turn: the question and facts after it, the best fact last, next to the answer."""
    return "\n".join([prompt, *(KNOWN.format(fact=document(item)) for item in reversed(found))])


def prompted(question: Question, facts: Facts, most: int) -> Asked:
    """The question after solved examples."""
    return Asked(question.prompt, _solved(question, facts, most, lambda _, prompt: prompt))


def retrieval(question: Question, facts: Facts, most: int) -> Asked:
    """The question with the facts that BM25 finds for it; solved examples have theirs, the right one among them."""

    def ask(item: Item, prompt: str) -> str:
        found = facts.ranked(prompt)
        return with_facts(found if item in found else [item, *found[: FOUND - 1]], prompt)

    return Asked(with_facts(facts.ranked(question.prompt), question.prompt), _solved(question, facts, most, ask))


def oracle(question: Question, facts: Facts, most: int) -> Asked:
    """The question with the right fact alone, as solved examples have theirs; an item never trained has none.

    A question that names several keys gets the fact of each.
    """
    item = question.item
    right = list(dict.fromkeys([item, *facts.named(question.prompt)])) if item.input in facts.by_input else []
    turns = _solved(question, facts, most, lambda item, prompt: with_facts([item], prompt))
    return Asked(with_facts(right, question.prompt), turns)


def dictionary(question: Question, facts: Facts, most: int) -> Asked:
    """The stored answer of the longest key in the question; without a key, the model is asked the question alone."""
    longest = max(facts.named(question.prompt), key=lambda item: len(item.input), default=None)
    return Asked(question.prompt, answer=longest.output if longest else None)
