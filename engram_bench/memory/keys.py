"""Find the keys, which are the inputs of trained items, in a user's text.

The paper's memory reads the last n tokens. In a chat, the answer starts after the template and often after a suffix
("... what is stored?"), so the last n tokens are not the key. The index therefore stores the tail of every trained
input, at most N tokens. The memory reads the longest tail found in a text. Each token and length costs one dictionary
lookup, whatever the number of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engram_bench.prompts import ABSENT


class KeyIndex:
    """A set of trained keys in compressed token ids.

    Args:
        keys: sequences of compressed ids; only the last `size` ids of each count.
        size: N, the longest n-gram.
    """

    def __init__(self, keys: Iterable[Sequence[int]], size: int) -> None:
        self.size = size
        self._cut: dict[tuple[int, ...], bool] = {}  # tail -> whether it is the end of a longer key
        self._add(keys)

    def _add(self, keys: Iterable[Sequence[int]]) -> None:
        for key in keys:
            tail = tuple(int(token) for token in key[-self.size :])
            self._cut[tail] = self._cut.get(tail, False) or len(key) > self.size

    @classmethod
    def from_array(cls, array: NDArray[np.int64]) -> KeyIndex:
        """Rebuild an index from the array of `to_array`."""
        index = cls((), array.shape[1] - 1)
        index._cut = {tuple(row[1:][row[1:] != ABSENT].tolist()): bool(row[0]) for row in array}
        return index

    def to_array(self) -> NDArray[np.int64]:
        """int64 [keys, 1 + N], sorted: whether the key was cut, and its tail, padded with `ABSENT` on the right."""
        rows = [[cut, *tail, *[ABSENT] * (self.size - len(tail))] for tail, cut in sorted(self._cut.items())]
        return np.array(rows, dtype=np.int64).reshape(len(rows), 1 + self.size)

    def with_keys(self, keys: Iterable[Sequence[int]]) -> KeyIndex:
        """Return an index with these keys added."""
        index = self.without(())
        index._add(keys)
        return index

    def without(self, keys: Iterable[Sequence[int]]) -> KeyIndex:
        """Return an index without the tails of these keys."""
        removed = {tuple(key[-self.size :]) for key in keys}
        index = KeyIndex((), self.size)
        index._cut = {tail: cut for tail, cut in self._cut.items() if tail not in removed}
        return index

    def tails(self) -> Iterable[tuple[int, ...]]:
        """The stored tail of each key."""
        return self._cut.keys()

    def __contains__(self, key: Sequence[int]) -> bool:
        return tuple(key[-self.size :]) in self._cut

    def find(self, content: Sequence[int], continues_word: Sequence[bool]) -> tuple[int, int] | None:
        """Range (start, end) of the longest key in `content`, end excluded; None if there is no key.

        The last of equally long keys wins. Of a key longer than N tokens, only the last N tokens count.

        Args:
            content: compressed token ids.
            continues_word: whether each token continues the word of the token before it. A key never ends within a
                word. It never starts within a word either, unless only its tail is stored.
        """
        found: tuple[int, int] | None = None
        for end in range(1, len(content) + 1):
            if end < len(content) and continues_word[end]:
                continue
            length = self.ending(content, end, continues_word.__getitem__, found[1] - found[0] if found else 1)
            if length:
                found = (end - length, end)
        return found

    def ending(self, content: Sequence[int], end: int, continues_word: Callable[[int], bool], shortest: int = 1) -> int:
        """Number of tokens of the longest key whose last token is ``content[end - 1]``; 0 if there is no key.

        Args:
            content: compressed token ids.
            end: the key's end, excluded.
            continues_word: whether the token at an index continues the word of the token before it.
            shortest: the fewest tokens that count.
        """
        for length in range(min(self.size, end), shortest - 1, -1):
            cut = self._cut.get(tuple(content[end - length : end]))
            if cut or (cut is not None and not continues_word(end - length)):
                return length
        return 0
