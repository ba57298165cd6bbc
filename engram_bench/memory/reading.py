"""Which n-gram each token reads, found from token ids alone, one token after the other.

`prompts.ngram_windows` knows where the prompt ends. Under a model's own forward nobody says so, and the ids may come in
any parts. So a token's n-gram follows from the tokens up to it and from nothing else, and what is known after a token
fits into a few numbers (`Row`), from which the next forward goes on.

**Text in the chat template.** An answer begins at the last token of the template's text after a user's turn. It reads
the n-gram that ends the span in that turn; the tokens after it extend the n-gram, up to end-of-text or the next turn. A
memory with ``span: text`` also acts on the user's own tokens.

**Raw text**, which has no turn of the template:

- A memory with ``span: key`` takes the last stored key in the text so far. An answer may begin at the key's own last
  token, and at each later token whose text ends with ``: ? = >`` or a line break. Such a token reads the n-gram that
  ends the key, unless it goes on with a trained answer; the tokens after it extend the n-gram.
- A memory with ``span: text`` acts on every token.
- End-of-text and beginning-of-text begin a new text.

Without a chat template all text is raw. What the encoder puts after a prompt is then a place, too, where an answer
begins, and never part of an n-gram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from engram_bench.errors import UsageError
from engram_bench.memory.addresses import Addresses, Spans
from engram_bench.prompts import ABSENT, Prompt, PromptEncoder, continues, extend_windows

PADDING = -1  # in place of a token id
BEGINNINGS = (":", "?", "=", ">", "\n")  # in raw text, an answer may begin after these
RAW, MARKED, TEMPLATE, USER, ANSWER = range(5)  # where a text is; MARKED: at what opens a turn, or is a mere BOS
PRIVATE = 0xF0000  # first of the characters that stand for special tokens, from Unicode's private use area
LONGEST_CHARACTER = 4  # tokens of one character
ID, PLACE, RUN, WINDOW = range(4)  # columns of a row of numbers; N columns each for the window and the key follow

NOTHING = np.empty((0, 1), np.int64)  # no earlier tokens

Numbers = list[int]


class Pieces:
    """The text of tokens, each decoded once.

    A token that is a part of a character reads as U+FFFD. A special token, or an added one of the template, reads as a
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
        """The text of these tokens."""
        return "".join([self[token] for token in ids])

    def _text(self, ids: Sequence[int]) -> str:
        # Behind another token, because some tokenizers drop the space that begins a text.
        whole = self._decode([self._first, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(whole)

    def __getitem__(self, token: int) -> str:
        piece = self._known.get(token)
        if piece is None:
            piece = self._known[token] = self._text([token])[self._skip :]
        return piece

    def continues_word(self, ids: Sequence[int], at: int) -> bool:
        """Whether token `at` continues the word of the token before it; see `Prompt.continues_word`."""
        if at == 0:
            return False
        before, own = self[ids[at - 1]], self[ids[at]]
        if "\ufffd" in before + own:  # a character of several tokens: decode them together
            start = max(0, at - LONGEST_CHARACTER)
            before, whole = self._text(ids[start:at]), self._text(ids[start : at + LONGEST_CHARACTER])
            begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
            before, own = whole[self._skip : begin], whole[begin:]
        return continues(before, own)


class Row:
    """One text while a forward reads it: its tokens without padding, and the numbers that are known after each.

    Args:
        start: the numbers before any token.
        numbers: int64 [tokens, width], the newest tokens that earlier forwards read; at least `Reading.reach` of them,
            or all there are.
        earlier: returns the numbers of all tokens that earlier forwards read.
    """

    def __init__(
        self,
        start: Numbers,
        numbers: NDArray[np.int64] = NOTHING,
        earlier: Callable[[], NDArray[np.int64]] = lambda: NOTHING,
    ) -> None:
        numbers = numbers[numbers[:, ID] != PADDING]
        self.ids: list[int] = numbers[:, ID].tolist()
        self.now: Numbers = numbers[-1].tolist() if len(numbers) else start
        self._old, self._earlier, self.added = numbers, earlier, list[Numbers]()

    def add(self, numbers: Numbers) -> None:
        self.now = numbers
        self.added.append(numbers)

    def last(self, count: int) -> list[int]:
        """The newest `count` token ids."""
        if len(self.ids) < count:
            new, every = self.ids[len(self._old) :], self._earlier()
            self._old = every[every[:, ID] != PADDING]
            self.ids = [*self._old[:, ID].tolist(), *new]
        return self.ids[-count:]

    def back(self, count: int) -> Numbers:
        """The numbers that were known `count` tokens before the newest; `count` is at most `Reading.reach`."""
        if count < len(self.added):
            return self.added[-1 - count]
        numbers: Numbers = self._old[len(self.added) - 1 - count].tolist()
        return numbers


class Reading:
    """The rule above for one memory.

    Args:
        encoder: the encoder that the memory was trained with.
        addresses: the memory's keys and rows.
        span: the range of a turn's tokens that the memory reads.

    Raises:
        UsageError: the chat template cannot be found in token ids.
    """

    def __init__(self, encoder: PromptEncoder, addresses: Addresses, span: Spans) -> None:
        self.size, self.on_text = max(addresses.config.orders), addresses.config.acts_on_text
        prompt, header = encoder.prompt("x"), encoder.header_ids
        self.pieces = pieces = Pieces(encoder, (*prompt.ids, *header))
        self._addresses, self._span = addresses, span
        self._compressed: list[int] = addresses.hasher.compressed_ids.tolist()
        self._last = {key[-1] for key in addresses.keys.tails()}
        self._turning: dict[int, bool] = {}
        start = prompt.content.index(True)
        end = len(prompt.ids) - prompt.content[::-1].index(True)
        self._before, self._after = pieces.joined(prompt.ids[:start]), pieces.joined(prompt.ids[end:])
        self._eos, self._bos = encoder.eos_id, getattr(encoder.tokenizer, "bos_token_id", None)
        # A special token opens a user's turn, and no other text has it. What is before it belongs to the turn before.
        opening = next((n for n, token in enumerate(header) if token in pieces.special), None)
        self._turn = None if opening is None else header[opening]
        self._header = pieces.joined(header[opening or 0 :]).lstrip()
        self.reach = max(len(self._header), len(self._after), self.size) + 2 * LONGEST_CHARACTER
        self._none = [ABSENT] * self.size
        self._blank = [encoder.eos_id, *self._none[1:]] if self.on_text else self._none  # before a text's first token
        self.start = self._numbers(PADDING, RAW, 0, self._blank, self._none)
        if self._header:
            row = Row(self.start)
            for token in prompt.ids:
                self.read(row, token)
            if row.now[PLACE] != ANSWER:
                raise UsageError("the chat template cannot be found in its own token ids; set tokenizer.chat_template")

    def _numbers(self, token: int, place: int, run: int, window: Numbers, key: Numbers) -> Numbers:
        return [token, place, run, *window, *key]

    def read(self, row: Row, token: int) -> Numbers:
        """Add a token to a row.

        Returns:
            The n-gram that the token reads, current token first; `ABSENT` for tokens that are not there.
        """
        row.ids.append(token)
        place, run = row.now[PLACE], row.now[RUN]
        if self._turns(token) or place == MARKED or (place == RAW and run):
            numbers, reads = self._next(row, token, self.pieces[token])
        else:  # the text is where it was; this is `_next` for most tokens
            reads = _extended(row.now[WINDOW : WINDOW + self.size], token)
            numbers = [token, place, run + (place >= USER), *reads, *row.now[WINDOW + self.size :]]
        row.add(numbers)
        return reads

    def step(
        self, last: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """One decoding step of all rows at once.

        Args:
            last: int64 [batch, width], the numbers after each row's last token.
            tokens: int64 [batch], the next token of each row.

        Returns:
            The n-grams read, [batch, N]; the numbers, [batch, width]; and which rows these are not right for, [batch].
            Those rows need `read`.
        """
        place, run, size = last[:, PLACE], last[:, RUN], self.size
        turning = np.array([self._turns(token) for token in tokens.tolist()])
        slow = turning | (place == MARKED) | ((place == RAW) & (run > 0)) | (last[:, ID] == PADDING)
        reads = extend_windows(last[:, WINDOW : WINDOW + size], tokens)
        head = np.stack([tokens, place, run + (place >= USER)], axis=1)
        return reads, np.concatenate([head, reads, last[:, WINDOW + size :]], axis=1), slow

    def _turns(self, token: int) -> bool:
        turning = self._turning.get(token)
        if turning is None:
            turning = self._turning[token] = self._may_turn(token, self.pieces[token])
        return turning

    def _may_turn(self, token: int, piece: str) -> bool:
        """Whether a text may be somewhere else after this token, or a key may end there."""
        ends = any(text and text[-1] in piece for text in (self._header, self._after))
        begins = piece.endswith(BEGINNINGS) or self._compressed_id(token) in self._last
        inside = self.on_text and piece in self._after
        return ends or begins or inside or token in (self._eos, self._bos, self._turn)

    def _compressed_id(self, token: int) -> int:
        return self._compressed[min(token, len(self._compressed) - 1)]  # a model can have more ids than its tokenizer

    def _next(self, row: Row, token: int, piece: str) -> tuple[Numbers, Numbers]:
        """The numbers after a token, and the n-gram that it reads."""
        now, size = row.now, self.size
        place, run, window, key = now[PLACE], now[RUN], now[WINDOW : WINDOW + size], now[WINDOW + size :]
        none = self._none
        if (behind := self._behind(row, piece, self._header)) >= 0:  # a user's turn begins
            window = _extended(self._blank, token) if behind else self._blank
            return self._numbers(token, USER, behind > 0, window, none), window if behind and self.on_text else none
        if place in (USER, ANSWER):
            run += 1  # tokens since the user's turn began
            if (behind := self._behind(row, piece, self._after)) >= 0:
                window = self._question(row, run, behind)
                window = _extended(window, token) if behind else window
                return self._numbers(token, ANSWER, run, window, none), window
        if place == USER:
            window = _extended(window, token)
            acts = self.on_text and not self._may_be_template(row, piece)
            return self._numbers(token, USER, run, window, none), window if acts else none
        opened = self.pieces.joined(row.ids[-2:])
        if place == MARKED and opened not in self._before and opened not in self._after:
            place, window, key, run = RAW, self._blank, none, 0  # it was not a turn but a beginning-of-text token
        if token == self._turn:
            return self._numbers(token, MARKED if place == RAW else TEMPLATE, 0, none, none), none
        if place == ANSWER and token != self._eos:
            window = _extended(window, token)
            return self._numbers(token, ANSWER, run, window, none), window
        if place != RAW:
            return self._numbers(token, TEMPLATE, 0, none, none), none
        if token in (self._eos, self._bos):
            return [token, *self.start[PLACE:]], none
        if self.on_text:
            return self._raw_text(row, token, piece, window)
        return self._raw_key(row, token, piece, run, window, key)

    def _behind(self, row: Row, piece: str, sought: str) -> int:
        """If `sought` ends within the newest token: the number of the token's characters behind it. Else -1."""
        if not sought or sought[-1] not in piece:
            return -1
        text = self._tail(row, sought)[-(len(sought) + len(piece) - 1) :]
        at = text.rfind(sought)
        return -1 if at < 0 else len(text) - at - len(sought)

    def _tail(self, row: Row, sought: str) -> str:
        return self.pieces.joined(row.ids[-len(sought) - 1 :])

    def _may_be_template(self, row: Row, piece: str) -> bool:
        """Whether the newest token may be one of the template's after the user's text: nobody knows before its end."""
        if piece not in self._after:
            return False
        text = self._tail(row, self._after)
        return any(text.endswith(self._after[:n]) for n in range(max(1, len(piece)), len(self._after)))

    def _whole(self, row: Row, length: int) -> int:
        """Number of the newest tokens that lie within the text's last `length` characters."""
        count = 0
        for token in reversed(row.ids):
            length -= len(self.pieces[token])
            if length < 0:
                break
            count += 1
        return count

    def _question(self, row: Row, run: int, behind: int) -> Numbers:
        """The n-gram that ends the span of a user's turn, which began `run` tokens ago."""
        after = self._whole(row, len(self._after) + behind)
        if run <= after:
            return self._none
        if self.on_text:
            return row.back(after - 1)[WINDOW : WINDOW + self.size]
        ids = row.last(run)[: run - after]
        joined = tuple(self.pieces.continues_word(ids, at) for at in range(len(ids)))
        span = self._span(Prompt(tuple(ids), (True,) * len(ids), None, joined))
        return self._gram(ids[slice(*span)]) if span else self._none

    def _gram(self, key: Sequence[int]) -> Numbers:
        """The n-gram that ends a key: the newest token first, the mark before the key, see `prompts.ngram_windows`."""
        return [*[*reversed(key), self._eos][: self.size], *self._none[len(key) + 1 :]]

    def _raw_text(self, row: Row, token: int, piece: str, window: Numbers) -> tuple[Numbers, Numbers]:
        window = _extended(window, token)
        acts = bool(self._header) or not self._may_be_template(row, piece)
        if not self._header and (behind := self._behind(row, piece, self._after)) >= 0:
            after = self._whole(row, len(self._after) + behind)
            window = row.back(after - 1)[WINDOW : WINDOW + self.size] if after < len(row.ids) else self._blank
            acts = window != self._blank
            window = _extended(window, token) if behind else window
        return self._numbers(token, RAW, 0, window, self._none), window if acts else self._none

    def _raw_key(
        self, row: Row, token: int, piece: str, run: int, window: Numbers, key: Numbers
    ) -> tuple[Numbers, Numbers]:
        """`run`: the token before ended a key of so many tokens. It is none if this token continues its word."""
        ids, pieces = row.ids, self.pieces
        if run and not pieces.continues_word(ids, len(ids) - 1):
            key = self._gram(ids[-1 - run : -1])
        start = max(0, len(ids) - self.size)
        tail = [self._compressed_id(i) for i in ids[start:]]
        run = self._addresses.keys.ending(tail, len(tail), lambda at: pieces.continues_word(ids, start + at))
        window = _extended(window, token)
        begins = piece.endswith(BEGINNINGS) or (not self._header and self._behind(row, piece, self._after) == 0)
        if run or (begins and key[0] != ABSENT):
            goes_on = window[0] != ABSENT and self._addresses.holds(np.array(window))
            window = window if goes_on else self._gram(ids[-run:]) if run else key
        return self._numbers(token, RAW, run, window, key), window


def _extended(window: Numbers, token: int) -> Numbers:
    """A window after one more token; one that holds no n-gram stays so."""
    return window if window[0] == ABSENT else [token, *window[:-1]]
