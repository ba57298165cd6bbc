"""What a hearing memory knows, and what each token of a text has heard. Uses numpy only, so all backends agree.

The memory has facts by name. From the last token of a name on, until the end of the answer, each token hears the facts
of this name: its attention also reads what the untouched model computes for a fact's statement, its *rows*. A reader,
a small LoRA, acts on these tokens. A text without a name is left as it is.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_bench.data.items import Item
from engram_bench.errors import UsageError
from engram_bench.memory.addresses import check_value
from engram_bench.memory.keys import KeyIndex, key_id, key_name
from engram_bench.prompts import ABSENT, Pair, Prompt, PromptEncoder, Span, blank_windows

CURRENT, NAMES = range(2)  # columns of a window: the token, and the number of the names heard so far
SIZE = 1  # tokens in a window
LEAST = 3  # characters of a plain name
READ_TOGETHER = 64  # statements in a forward
TABLE_BYTES = 1 << 29  # of a table of rows, at least one text's
BEFORE = 4  # tokens from a statement's last one to each token that hears it, for rotary positions
NULL = 5.0  # at first, the score at which a head's attention to the text counts as much as one row
KIND = "engram-hearing"  # of its files
HEARD = "heard"  # name of the part of a layer's reader that attends to rows
WITHOUT = "a hearing memory needs attention with a q_proj, as in Llama; use another model"


class Fact(NamedTuple):
    """A fact: the names at which it is heard, as `keys.key_name` writes them; its key, and its value."""

    names: tuple[str, ...]
    key: str
    value: str


def fact_of(item: Item) -> Fact:
    """An item's fact, heard at its plain name, and at its whole input if that does not hold the name.

    A plain name of fewer than `LEAST` characters is none: in another case, "In" of indium is in any text.
    """
    plain = [key_name(name) for name in item.names[:1] if len(name) >= LEAST]
    whole = key_name(item.input)
    if plain and KeyIndex({plain[0]: ()}).every(item.input):
        return Fact((plain[0],), item.input, item.output)
    return Fact((*plain, whole), item.input, item.output)


def statement(fact: Fact, encoder: PromptEncoder) -> tuple[int, ...]:
    """The token ids whose keys and values are a fact's rows, without the one before them that starts every statement.

    The value is on a line of its own, so that its tokens are those of the answer.
    """
    return (*encoder.answer(f"{fact.key}\n")[:-1], *encoder.answer(fact.value))


class Facts:
    """The facts of a hearing memory, and the names at which they are heard.

    Args:
        trained: the facts of its training.
        written: those written afterwards.
    """

    def __init__(self, trained: Iterable[Fact] = (), written: Iterable[Fact] = ()) -> None:
        self.trained, self.written = tuple(trained), tuple(written)
        self._by_name: dict[str, list[Fact]] = {}
        for fact in (*self.trained, *self.written):
            for name in fact.names:
                self._by_name.setdefault(name, []).append(fact)
        self._keys = {key_name(fact.key) for fact in (*self.trained, *self.written)}
        self._index = KeyIndex(dict.fromkeys(self._by_name, ()))
        self._values: Mapping[str, str] = {}
        self._numbers: dict[tuple[str, ...], int] = {}
        self._heard: list[tuple[str, ...]] = []

    @classmethod
    def of_training(cls, pairs: Sequence[Pair]) -> Facts:
        """The facts of the items that these prompts ask for.

        Raises:
            UsageError: a key is part of a longer word, where no name can be found.
        """
        facts = cls(dict.fromkeys(fact_of(item) for prompt, _ in pairs for item in prompt.items))
        for prompt, _ in pairs:
            if prompt.key and not facts._index.every(prompt.text):
                where = f"{prompt.text[slice(*prompt.key)]!r:.60} is part of a longer word in {prompt.text!r:.120}"
                raise UsageError(f"{where} and cannot be found there; put spaces around it")
        return facts

    @classmethod
    def from_array(cls, array: NDArray[np.uint8]) -> Facts:
        """Rebuild from the array of `to_array`."""
        stored = json.loads(array.tobytes() or b"[[], []]")
        return cls(*([Fact(tuple(names), key, value) for names, key, value in facts] for facts in stored))

    def to_array(self) -> NDArray[np.uint8]:
        """uint8 [bytes]: JSON of the facts."""
        return np.frombuffer(json.dumps([self.trained, self.written]).encode(), np.uint8)

    @property
    def names(self) -> tuple[str, ...]:
        """The names at which facts are heard."""
        return tuple(self._by_name)

    def known(self) -> dict[str, str]:
        """The value of each key, trained or written."""
        return {fact.key: fact.value for fact in (*self.trained, *self.written)}

    def check_new(self, key: str, value: str, name: str = "") -> None:
        """Check whether a fact can be written.

        Raises:
            UsageError: its key, value or name is blank, or its key is known.
        """
        if not key_name(key) or (name and not key_name(name)):
            raise UsageError("the key is blank, or its name; give what a prompt can contain")
        check_value(value)
        if key_name(key) in self._keys:
            raise UsageError(f"{key!r} is already known; forget it first, or choose another key")

    def with_facts(self, new: Iterable[Fact]) -> Facts:
        """These facts and further written ones."""
        return Facts(self.trained, (*self.written, *new))

    def without(self, key: str) -> Facts:
        """These facts less the written one of a key."""
        return Facts(self.trained, [fact for fact in self.written if fact.key != key])

    def damaged(self, damage: str) -> Facts:
        """For a control: "zero", no name has a fact; "shuffle", each name has the facts of another."""
        names = list(self._by_name)
        others = random.Random(0).sample(names, len(names))
        changed = Facts()
        changed._index = self._index
        if damage == "shuffle":
            turn = zip(others, [*others[1:], *others[:1]], strict=True)
            changed._by_name = {name: self._by_name[other] for name, other in turn}
        return changed

    def name_for(self, key: str) -> str:
        """The name at which a new fact is heard that comes without one: the last known name in its key, or the key."""
        found = self._index.every(key)
        return found[-1].key if found else key_name(key)

    def assign(self, values: Mapping[str, str]) -> None:
        """Give keys other values for a while; {}: their own."""
        self._values = values

    def places(self, prompt: Prompt) -> list[tuple[int, str]]:
        """The names in what was said so far, in their order: the token that ends each, and the name."""
        messages = prompt.messages()
        return [(m.last_token(key.start, key.end), key.key) for m in messages for key in self._index.every(m.text)]

    def span(self, prompt: Prompt) -> Span | None:
        """The content tokens of the first name, empty if it was said in an earlier turn; None if there is no name."""
        if found := self._index.every(prompt.text):
            start, end = prompt.tokens_at(found[0].start, found[0].end)
            return Span(start, end, tuple(prompt.content_ids()[start:end].tolist()), key_id(found[0].key))
        earlier = self.places(prompt)
        return Span(0, 0, (), key_id(earlier[0][1])) if earlier else None

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        """What each token reads: int64 [tokens, 2], see the columns above.

        A token before the first name's end is `ABSENT` throughout. The numbers in `NAMES` belong to this object.
        """
        windows = blank_windows(len(prompt.ids) + len(answer), SIZE)
        heard: dict[str, None] = {}
        for place, name in self.places(prompt):
            if not heard:
                windows[place:, CURRENT] = [*prompt.ids, *answer][place:]
            heard[name] = None
            windows[place:, NAMES] = self._number(tuple(heard))
        return windows

    def _number(self, names: tuple[str, ...]) -> int:
        if names not in self._numbers:
            self._numbers[names] = len(self._heard)
            self._heard.append(names)
        return self._numbers[names]

    def heard(self, number: int) -> list[Fact]:
        """The facts of the names that a number in `NAMES` stands for, each once, with the assigned values."""
        facts = dict.fromkeys(fact for name in self._heard[number] for fact in self._by_name.get(name, ()))
        return [fact._replace(value=self._values.get(fact.key, fact.value)) for fact in facts]


class HeardRows(ABC):
    """The rows that each token hears: a table of the rows of facts, filled as they are heard, emptied when full.

    Args:
        facts: the facts.
        encoder: of the model.
        row_bytes: of a row; 0: there are no rows.
    """

    def __init__(self, facts: Facts, encoder: PromptEncoder, row_bytes: int) -> None:
        self.facts, self._encoder, self._reads = facts, encoder, row_bytes > 0
        self._capacity = TABLE_BYTES // max(1, row_bytes)
        self._at: dict[Fact, range] = {}
        self._used = 1  # row 0 stands for none

    @abstractmethod
    def _make_room(self, rows: int) -> None:
        """Make the table at least as long as this."""

    @abstractmethod
    def _compute(self, statements: Sequence[tuple[int, ...]], at: int) -> None:
        """Compute the rows of statements, and put them into the table one after the other, from row `at` on."""

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """What each token hears.

        Returns:
            int64 [batch, tokens, 1 + rows]: whether the reader acts on the token; then the numbers of the rows that
            some token of its text hears, 0 where this one does not. Of size 0 if the reader acts on none.
        """
        acts = active(windows)
        if not acts.any():
            return acts[..., :0]
        texts = [self._heard(window) for window in windows]
        self.hold([fact for text in texts for facts in text.values() for fact in facts])
        union = [sorted({row for facts in text.values() for fact in facts for row in self._at[fact]}) for text in texts]
        heard = np.zeros((*windows.shape[:2], max(map(len, union))), np.int64)
        for text, rows, window, out in zip(texts, union, windows, heard, strict=True):
            for number, facts in text.items():
                own = np.isin(rows, [row for fact in facts for row in self._at[fact]])
                out[window[:, NAMES] == number, : len(rows)] = rows * own
        return np.concatenate([acts, heard], axis=-1)

    def _heard(self, window: NDArray[np.int64]) -> dict[int, list[Fact]]:
        """The numbers in a text's window [tokens, 2], and the facts that each stands for."""
        numbers = np.unique(window[window[:, CURRENT] != ABSENT, NAMES]).tolist()
        return {number: self.facts.heard(number) if self._reads else [] for number in numbers}

    def hold(self, facts: Sequence[Fact]) -> None:
        """Compute the rows of those facts that have none yet."""
        statements = {fact: statement(fact, self._encoder) for fact in dict.fromkeys(facts) if fact not in self._at}
        if self._used + sum(map(len, statements.values())) > self._capacity:
            self._at.clear()
            self._used = 1
            statements = {fact: statement(fact, self._encoder) for fact in dict.fromkeys(facts)}
        if not statements:
            return
        self._make_room(self._used + sum(map(len, statements.values())))
        ordered = sorted(statements, key=lambda fact: len(statements[fact]))
        for start in range(0, len(ordered), READ_TOGETHER):
            some = ordered[start : start + READ_TOGETHER]
            self._compute([statements[fact] for fact in some], self._used)
            for fact in some:
                self._at[fact] = range(self._used, self._used + len(statements[fact]))
                self._used += len(statements[fact])


def active(windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whether the reader acts on each token: [..., 2] -> int64 [..., 1]."""
    acts: NDArray[np.bool_] = windows[..., :1] != ABSENT
    return acts.astype(np.int64)


def part_name(layer: int, name: str) -> str:
    """Name of the reader's part for a linear layer of a decoder layer; without dots, which no module's name has."""
    return f"{layer}/{name.replace('.', '/')}"
