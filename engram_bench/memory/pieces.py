"""The text of tokens, and the keys that end in it while it grows token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from engram_bench.memory.keys import KeyIndex, joined, units
from engram_bench.prompts import PromptEncoder

PRIVATE = 0xF0000  # first of the characters that stand for special tokens, from Unicode's private use area
LONGEST_CHARACTER = 4  # tokens of one character
CUT = "\ufffd"  # how a token that is a part of a character reads
TAIL = 16  # with so many tokens most keys are found


class Pieces:
    """The text of tokens, each decoded once.

    A token that is a part of a character reads as `CUT`. A special token, or an added one of the template, reads as a
    character of its own, so that it differs from its name in a user's text.

    Args:
        encoder: encoder of the tokenizer.
        template: ids of the template's tokens.
    """

    def __init__(self, encoder: PromptEncoder, template: Iterable[int]) -> None:
        self._decode, self._first = encoder.tokenizer.decode, encoder.eos_id
        self._skip = len(self._text([]))
        added, inside = getattr(encoder.tokenizer, "added_tokens_decoder", {}), set(template)
        special = [i for i, token in added.items() if token.special or (i in inside and token.content.strip())]
        self.special = frozenset(special)
        self._known: dict[int, str] = {i: chr(PRIVATE + n) for n, i in enumerate(special)}

    def joined(self, ids: Iterable[int]) -> str:
        """The texts of these tokens, each by itself."""
        return "".join([self[token] for token in ids])

    def text(self, ids: Sequence[int]) -> str:
        """The text of these tokens, decoded together: characters of several tokens are whole."""
        text = self.joined(ids)
        if CUT not in text:
            return text
        runs = [(special, list(run)) for special, run in groupby(ids, self.special.__contains__)]
        return "".join([self.joined(run) if special else self._text(run)[self._skip :] for special, run in runs])

    def _text(self, ids: Sequence[int]) -> str:
        # Behind another token, because some tokenizers drop the space that begins a text.
        whole = self._decode([self._first, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(whole)

    def __getitem__(self, token: int) -> str:
        piece = self._known.get(token)
        if piece is None:
            piece = self._known[token] = self._text([token])[self._skip :]
        return piece


class Ending(NamedTuple):
    """The keys that end in the newest tokens of a text.

    Attributes:
        whole: name of the last key that the next text cannot continue; None: no such key ends there.
        last: name of the key that ends the text; None: none does.
        open: whether the text ends with a key, or with parts of a character behind it, so that the next text may
            continue the key's last word.
    """

    whole: str | None
    last: str | None
    open: bool


class KeyEndings:
    """Finds the keys that end in the newest tokens of a text.

    Args:
        keys: the keys.
        pieces: the text of tokens.
    """

    def __init__(self, keys: KeyIndex, pieces: Pieces) -> None:
        self._keys, self._pieces, self._known = keys, pieces, dict[int, bool]()

    def may_be_in(self, token: int) -> bool:
        """Whether a key may end with a word or mark of this token, whatever the tokens before it."""
        known = self._known.get(token)
        if known is None:
            piece = self._pieces[token]
            split = [unit.text for unit in units(piece)]
            known = CUT in piece or any(map(self._keys.ends_with, split[:1])) or any(map(self._keys.longest, split[1:]))
            self._known[token] = known
        return known

    def within(self, newest: int, last: Callable[[int], Sequence[int]]) -> Ending:
        """The keys that end in the `newest` tokens.

        Args:
            newest: number of tokens.
            last: returns so many of the newest token ids, or all if there are fewer.
        """
        keys, count = self._keys, newest + TAIL
        while True:
            ids = last(count)
            text = self._pieces.text(ids)
            clear = text.rstrip(CUT)  # nobody knows which character it is before its end
            split, before = units(clear), len(self._pieces.text(ids[:-newest]).rstrip(CUT))
            new = [n for n, unit in enumerate(split) if unit.end > before and keys.ends_with(unit.text)]
            # What these tokens begin with may be parts of a character and the rest of a word.
            if len(ids) < count or all(n >= keys.longest(split[n].text) + LONGEST_CHARACTER for n in new):
                break
            count *= 2
        ending = Ending(None, None, False)
        for n in reversed(new):
            length = keys.ending(split, n + 1)
            if not length:
                continue
            name = joined(split[n + 1 - length : n + 1])
            if n + 1 == len(split):
                word, rest = clear[split[n].start :], clear[split[n].end :]
                last_key = None if rest.isspace() or clear != text else name
                ending = Ending(None, last_key, len(units(word + "x")) == len(units(word)))
                if ending.open:
                    continue
            return ending._replace(whole=name)
        return ending
