"""Find the keys, which are the inputs of trained items, in a user's text.

The paper's memory reads the last n tokens. In a chat, the answer starts after the template and often after a suffix
("... what is stored?"), so the last n tokens are not the key. The index therefore stores every trained key, and the
memory reads the longest one that stands in a text. It compares words and marks, not tokens: a tokenizer splits one key
in several ways, which depend on the text around it. Each word and length of key costs one dictionary lookup, whatever
the number of keys.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ASCII_UNIT = re.compile(r"\w+|[^\w\s]")
# Each of these characters is a word of its own: scripts whose words are not separated by spaces (Thai, Lao, Myanmar,
# Khmer, Hiragana, Katakana, Chinese, Hangul), and variation selectors, which turn the character before into an emoji.
APART = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\ufe00-\ufe0f\U00020000-\U0003ffff]"
)


class Unit(NamedTuple):
    """A word, or a single character that belongs to no word, with its range [start, end) of characters in the text."""

    text: str
    start: int
    end: int


class Found(NamedTuple):
    """A key in a text: its range [start, end) of characters, and the key as `KeyIndex` names it."""

    start: int
    end: int
    key: str


def units(text: str) -> list[Unit]:
    """Split a text into words and marks. Case, accents and width are folded as in the tokenizer compression."""
    if text.isascii():
        return [Unit(found[0], *found.span()) for found in ASCII_UNIT.finditer(text.lower())]
    split: list[Unit] = []
    inside = False  # a word
    for at, character in enumerate(text):
        for piece, in_word in _folded(character):
            if in_word and inside:
                split[-1] = Unit(split[-1].text + piece, split[-1].start, at + 1)
            elif not piece.isspace():
                split.append(Unit(piece, at, at + 1))
            inside = in_word
    return split


@lru_cache(maxsize=1 << 14)
def _folded(character: str) -> tuple[tuple[str, bool], ...]:
    """What a character becomes, piece by piece, and whether each piece belongs to a word; () for a combining mark.

    Letters, digits, spacing marks and the underscore belong to words, except those in `APART`.
    """
    if APART.match(character):
        return ((character, False),)
    parts = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", character)).lower()
    kept = (part for part in parts if not unicodedata.combining(part))
    return tuple((part, part == "_" or unicodedata.category(part) in WORD) for part in kept)


WORD = {"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Mn", "Mc"}  # Unicode categories


def _singular(word: str) -> list[str]:
    """A word, and what it is the plural of, if it may be one."""
    return [word, *(word[: -len(ending)] for ending in ("s", "es") if word.endswith(ending) and len(word) > 4)]


def key_name(text: str) -> str:
    """The units of a key, joined by spaces. Keys that differ only in case, accents, width or white space share it."""
    return joined(units(text))


def joined(split: Iterable[Unit]) -> str:
    """The name of a key of these units."""
    return " ".join(unit.text for unit in split)


def key_id(name: str) -> int:
    """A number below 2^62 that identifies a key of this name."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) >> 2


class KeyIndex:
    """A set of keys with the token ids that stand for each, however a text writes it.

    Args:
        tokens: key name (see `key_name`) -> token ids.
    """

    def __init__(self, tokens: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.tokens = dict(tokens or {})
        lengths: dict[str, set[int]] = {}  # in units, by the last unit
        for name in self.tokens:
            parts = name.split(" ")
            lengths.setdefault(parts[-1], set()).add(len(parts))
        self._lengths = {last: sorted(found, reverse=True) for last, found in lengths.items()}
        self._backwards = sorted(last[::-1] for last in lengths)

    @classmethod
    def from_array(cls, array: NDArray[np.uint8]) -> KeyIndex:
        """Rebuild an index from the array of `to_array`."""
        return cls({name: tuple(ids) for name, ids in json.loads(array.tobytes() or b"{}").items()})

    def to_array(self) -> NDArray[np.uint8]:
        """uint8 [bytes]: JSON of the keys, sorted."""
        return np.frombuffer(json.dumps(dict(sorted(self.tokens.items()))).encode(), np.uint8)

    def with_key(self, name: str, ids: tuple[int, ...]) -> KeyIndex:
        """Return an index with this key added."""
        return KeyIndex({**self.tokens, name: ids})

    def without(self, names: Iterable[str]) -> KeyIndex:
        """Return an index without these keys."""
        removed = set(names)
        return KeyIndex({name: ids for name, ids in self.tokens.items() if name not in removed})

    def __contains__(self, name: str) -> bool:
        return name in self.tokens

    def find(self, text: str) -> Found | None:
        """The longest key in a text, counted in units; the last of equally long ones; None if there is no key."""
        split = units(text)
        found: Found | None = None
        longest = 1
        for end, last in enumerate(split, 1):
            if length := self.ending(split, end, longest):
                start = end - length
                found, longest = Found(split[start].start, last.end, joined(split[start:end])), length
        return found

    def every(self, text: str) -> list[Found]:
        """All keys in a text, from its start on; of two that overlap, the longer one.

        The last word of a key may be a plural, "Brellixes" for "Brellix". A possessive is a word of its own.
        """
        split = units(text)
        found: list[tuple[int, int, str]] = []  # number of units, end, name
        for end, last in enumerate(split, 1):
            for word in filter(self._lengths.__contains__, _singular(last.text)):
                if length := self.ending([*split[: end - 1], last._replace(text=word)], end):
                    name = joined([*split[end - length : end - 1], last._replace(text=word)])
                    found.append((length, end, name))
                    break
        taken: list[Found] = []
        for length, end, name in sorted(found, key=lambda one: (-one[0], one[1])):
            start, stop = split[end - length].start, split[end - 1].end
            if all(stop <= other.start or other.end <= start for other in taken):
                taken.append(Found(start, stop, name))
        return sorted(taken)

    def ending(self, split: Sequence[Unit], end: int, shortest: int = 1) -> int:
        """Number of units of the longest key whose last unit is ``split[end - 1]``; 0 if there is no such key.

        Args:
            split: units of a text.
            end: the key's end, excluded.
            shortest: the fewest units that count.
        """
        for length in self._lengths.get(split[end - 1].text, ()):
            if length < shortest:
                break
            if length <= end and joined(split[end - length : end]) in self.tokens:
                return length
        return 0

    def longest(self, last: str) -> int:
        """Number of units of the longest key with this last unit; 0 if no key has it."""
        return self._lengths.get(last, (0,))[0]

    def ends_with(self, text: str) -> bool:
        """Whether the last unit of some key is, or ends with, this text."""
        at = bisect_left(self._backwards, text[::-1])
        return at < len(self._backwards) and self._backwards[at].startswith(text[::-1])
