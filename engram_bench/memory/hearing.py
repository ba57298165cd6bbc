"""Where a hearing memory acts, found from a prompt's text. Uses numpy only, so that every backend finds the same.

The memory has a row for each key, added to the hidden state of the key's last token wherever the key stands in the
text. Its reader, a small LoRA, acts on that token and on all tokens after it, until the end of the answer. A text
without a key is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engram_bench.errors import UsageError
from engram_bench.memory.keys import KeyIndex, key_id, key_name
from engram_bench.prompts import ABSENT, Pair, Prompt, Span, blank_windows

CURRENT, PREVIOUS, KEY = range(3)  # columns of a window
SIZE = 2  # tokens in a window
LEAST = 3  # characters of a plain name
KIND = "engram-hearing"  # of its files


class HeardKeys:
    """The keys of a hearing memory, and the row of each.

    Args:
        names: keys by name, see `keys.key_name`. The row of the n-th is n + 1; row 0 stands for no key.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._index = KeyIndex(dict.fromkeys(self.names, ()))
        self._rows = {key_id(name): row for row, name in enumerate(self.names, 1)}

    @classmethod
    def of_training(cls, pairs: Sequence[Pair]) -> HeardKeys:
        """The names of the items that these prompts ask for: the plain one, or else the whole key.

        A plain name of fewer than `LEAST` characters is none: in another case, "In" of indium is in any text.

        Raises:
            UsageError: a key is part of a longer word, where it cannot be found.
        """
        found: list[str] = []
        for prompt, _ in pairs:
            spans = [span for span in (prompt.name, prompt.key) if span]
            if named := [text for a, b in spans if len(text := prompt.text[a:b]) >= LEAST or (a, b) == prompt.key]:
                found.append(key_name(named[0]))
        keys = cls(found)
        for prompt, _ in pairs:
            if prompt.key and not keys._index.every(prompt.text):
                where = f"{prompt.text[slice(*prompt.key)]!r:.60} is part of a longer word in {prompt.text!r:.120}"
                raise UsageError(f"{where} and cannot be found there; put spaces around it")
        return keys

    @classmethod
    def from_array(cls, array: NDArray[np.uint8]) -> HeardKeys:
        """Rebuild from the array of `to_array`."""
        return cls(json.loads(array.tobytes() or b"[]"))

    def to_array(self) -> NDArray[np.uint8]:
        """uint8 [bytes]: JSON of the names, in the order of their rows."""
        return np.frombuffer(json.dumps(self.names).encode(), np.uint8)

    def places(self, prompt: Prompt) -> list[tuple[int, int]]:
        """The keys in the user's text, in their order: the token that ends each, and its `key_id`."""
        own = [place for place, mine in enumerate(prompt.content) if mine]
        found = self._index.every(prompt.text)
        return [(own[prompt.tokens_at(key.start, key.end)[1] - 1], key_id(key.key)) for key in found]

    def heard(self, prompts: Iterable[Prompt]) -> list[str]:
        """The names that stand in some prompts, each once."""
        return list(dict.fromkeys(found.key for prompt in prompts for found in self._index.every(prompt.text)))

    def span(self, prompt: Prompt) -> Span | None:
        """The content tokens of the first key; None if the text has no key."""
        if not (found := self._index.every(prompt.text)):
            return None
        start, end = prompt.tokens_at(found[0].start, found[0].end)
        return Span(start, end, tuple(prompt.content_ids()[start:end].tolist()), key_id(found[0].key))

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        """What each token reads: int64 [tokens, 3], see the columns above.

        A token before the first key's end is `ABSENT` throughout. One that ends a key has the key, and no token before
        it: so a token that follows in an answer, whose window goes on from this one's, does not end it again.
        """
        windows = blank_windows(len(prompt.ids) + len(answer), SIZE)
        if places := self.places(prompt):
            first = places[0][0]
            stream = np.array([*prompt.ids, *answer], dtype=np.int64)
            windows[first:, CURRENT] = stream[first:]
            windows[first + 1 :, PREVIOUS] = stream[first:-1]
            for place, key in places:
                windows[place, PREVIOUS:] = ABSENT, key
        return windows

    def rows(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of the key that each token ends, 0 if it ends none: [..., 3] -> int64 [..., 1]."""
        ends = (windows[..., KEY] != ABSENT) & (windows[..., PREVIOUS] == ABSENT)
        found = np.zeros(ends.shape, np.int64)
        found[ends] = [self._rows.get(key, 0) for key in windows[ends, KEY].tolist()]
        return found[..., None]


def active(windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whether the reader acts on each token: [..., 3] -> int64 [..., 1]."""
    acts: NDArray[np.bool_] = windows[..., :1] != ABSENT
    return acts.astype(np.int64)


def part_name(layer: int, name: str) -> str:
    """Name of the reader's part for a linear layer of a decoder layer; without dots, which no module's name has."""
    return f"{layer}/{name.replace('.', '/')}"
