"""Which n-gram each token reads, found from token ids alone, one token after the other.

`prompts.ngram_windows` knows where the prompt ends. Under a model's own forward nobody says so, and the ids may come in
any parts. So a token's n-gram follows from the tokens up to it and from nothing else, and what is known after a token
fits into a few numbers (`Row`), from which the next forward goes on.

**Text in the chat template.** An answer begins at the last token of the template's text after a user's turn. It reads
the n-gram that ends the span in that turn; the tokens after it extend the n-gram, up to end-of-text or the next turn. A
memory with ``span: text`` also acts on the user's own tokens.

**Raw text**, which has no turn of the template:

- A memory with ``span: key`` takes the last stored key in the text so far, and the longest of those that end there. A
  key counts once the next text does not continue its last word. An answer may begin at a token with which the text ends
  with a key, and at each later token whose text ends with ``: ? = >`` or a line break. Such a token reads the n-gram
  that ends the key, unless it goes on with a trained answer; the tokens after it extend the n-gram.
- A memory with ``span: text`` acts on every token.
- End-of-text and beginning-of-text begin a new text.

Without a chat template all text is raw. What the encoder puts after a prompt is then a place, too, where an answer
begins, and never part of an n-gram.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engram_bench.errors import UsageError
from engram_bench.memory.addresses import Addresses, Spans
from engram_bench.memory.keys import key_id
from engram_bench.memory.pieces import LONGEST_CHARACTER, TAIL, Ending, KeyEndings, Pieces
from engram_bench.prompts import ABSENT, Prompt, PromptEncoder, extend_windows

PADDING = -1  # in place of a token id
BEGINNINGS = (":", "?", "=", ">", "\n")  # in raw text, an answer may begin after these
RAW, MARKED, TEMPLATE, USER, ANSWER = range(5)  # where a text is; MARKED: at what opens a turn, or is a mere BOS
ID, PLACE, RUN, WINDOW = range(4)  # columns of a row of numbers; N + 1 columns each for the window and the key follow

NOTHING = np.empty((0, 1), np.int64)  # no earlier tokens

Numbers = list[int]


class Row:
    """One text while a forward reads it: its tokens without padding, and the numbers that are known after each.

    Args:
        start: the numbers before any token.
        numbers: int64 [tokens, width], the newest tokens that earlier forwards read; at least `Reading.reach` of them,
            or all there are.
        earlier: returns the numbers of all tokens that earlier forwards read; None: those are all.
    """

    def __init__(
        self,
        start: Numbers,
        numbers: NDArray[np.int64] = NOTHING,
        earlier: Callable[[], NDArray[np.int64]] | None = None,
    ) -> None:
        numbers = numbers[numbers[:, ID] != PADDING]
        self.ids: list[int] = numbers[:, ID].tolist()
        self.now: Numbers = numbers[-1].tolist() if len(numbers) else start
        self._old, self._earlier, self.added = numbers, earlier, list[Numbers]()

    def add(self, numbers: Numbers) -> None:
        self.now = numbers
        self.added.append(numbers)

    def last(self, count: int) -> list[int]:
        """The newest `count` token ids, or all there are; `count` is more than 0."""
        if len(self.ids) < count and self._earlier is not None:
            new, every = self.ids[len(self._old) :], self._earlier()
            self._old, self._earlier = every[every[:, ID] != PADDING], None
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
        UsageError: the chat template cannot be found in token ids, or the memory acts on a key itself.
    """

    def __init__(self, encoder: PromptEncoder, addresses: Addresses, span: Spans) -> None:
        if addresses.config.keyed and addresses.config.acts_on_text:
            raise UsageError(
                "a memory with span: key and acts: everywhere needs the whole prompt to know its key, which a model's "
                "own forward does not give; use acts: answer"
            )
        self.size, self.on_text = max(addresses.config.orders), addresses.config.acts_on_text
        prompt, header = encoder.prompt("x"), encoder.header_ids
        self.pieces = pieces = Pieces(encoder, (*prompt.ids, *header))
        self._addresses, self._span = addresses, span
        self._turning: dict[int, bool] = {}
        self._endings = KeyEndings(addresses.keys, pieces)
        start = prompt.content.index(True)
        end = len(prompt.ids) - prompt.content[::-1].index(True)
        self._before, self._after = pieces.joined(prompt.ids[:start]), pieces.joined(prompt.ids[end:])
        starts = () if encoder.has_template else prompt.ids[:start]  # the tokenizer puts them before every text
        bos = getattr(encoder.tokenizer, "bos_token_id", None)
        self._eos, self._beginnings = encoder.eos_id, {encoder.eos_id, bos, *pieces.special.intersection(starts)}
        # A special token opens a user's turn, and no other text has it. What is before it belongs to the turn before.
        opening = next((n for n, token in enumerate(header) if token in pieces.special), None)
        self._turn = None if opening is None else header[opening]
        self._header = pieces.joined(header[opening or 0 :]).lstrip()
        self.reach = max(len(self._header), len(self._after), self.size, TAIL) + 2 * LONGEST_CHARACTER
        self._none = [ABSENT] * (self.size + 1)
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

    def _windows(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """The n-gram that the token reads or would, and the one that ends the last key."""
        key = WINDOW + self.size + 1
        return numbers[WINDOW:key], numbers[key:]

    def read(self, row: Row, token: int) -> Numbers:
        """Add a token to a row.

        Returns:
            The n-gram that the token reads, current token first and the key last; see `prompts.ngram_windows`.
        """
        row.ids.append(token)
        place, run = row.now[PLACE], row.now[RUN]
        if self._turns(token) or place == MARKED or (place == RAW and run):
            numbers, reads = self._next(row, token, self.pieces[token])
        else:  # the text is where it was; this is `_next` for most tokens
            window, key = self._windows(row.now)
            reads = _extended(window, token)
            numbers = self._numbers(token, place, run + (place >= USER), reads, key)
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
            The n-grams read, [batch, N + 1]; the numbers, [batch, width]; and which rows these are not right for,
            [batch]. Those rows need `read`.
        """
        place, run, key = last[:, PLACE], last[:, RUN], WINDOW + self.size + 1
        turning = np.array([self._turns(token) for token in tokens.tolist()])
        slow = turning | (place == MARKED) | ((place == RAW) & (run > 0)) | (last[:, ID] == PADDING)
        reads = extend_windows(last[:, WINDOW:key], tokens)
        head = np.stack([tokens, place, run + (place >= USER)], axis=1)
        return reads, np.concatenate([head, reads, last[:, key:]], axis=1), slow

    def _turns(self, token: int) -> bool:
        turning = self._turning.get(token)
        if turning is None:
            turning = self._turning[token] = self._may_turn(token, self.pieces[token])
        return turning

    def _may_turn(self, token: int, piece: str) -> bool:
        """Whether a text may be somewhere else after this token, or a key may end there."""
        ends = any(text and text[-1] in piece for text in (self._header, self._after))
        begins = piece.endswith(BEGINNINGS) or (not self.on_text and self._endings.may_be_in(token))
        inside = self.on_text and piece in self._after
        return ends or begins or inside or token in self._beginnings or token == self._turn

    def _next(self, row: Row, token: int, piece: str) -> tuple[Numbers, Numbers]:
        """The numbers after a token, and the n-gram that it reads."""
        place, run = row.now[PLACE], row.now[RUN]
        window, key = self._windows(row.now)
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
        if token in self._beginnings:
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

    def _whole(self, row: Row, length: int) -> tuple[int, int]:
        """Number of the newest tokens that lie within the text's last `length` characters; and of characters left."""
        count = 0
        for token in reversed(row.ids):
            characters = len(self.pieces[token])
            if characters > length:
                break
            count, length = count + 1, length - characters
        return count, length

    def _question(self, row: Row, run: int, behind: int) -> Numbers:
        """The n-gram that ends the span of a user's turn, which began `run` tokens ago."""
        after, left = self._whole(row, len(self._after) + behind)
        if run <= after:
            return self._none
        if self.on_text:
            return self._windows(row.back(after - 1))[0]
        ids = row.last(run)[: run - after]
        text = self.pieces.text(ids)
        text = text[: len(text) - left]  # a token can hold the end of the user's text and the template's beginning
        # Where in the text each token stands changes nothing in what is read, so each may stand everywhere.
        span = self._span(Prompt(tuple(ids), (True,) * len(ids), text, ((0, len(text)),) * len(ids)))
        return self._gram(span.tokens, span.key) if span else self._none

    def _gram(self, tokens: Sequence[int], key: int) -> Numbers:
        """The n-gram that ends a key: the newest token first, the mark before the key, see `prompts.ngram_windows`."""
        gram = [*reversed(tokens[-self.size :]), self._eos][: self.size]
        return [*gram, *[ABSENT] * (self.size - len(gram)), key]

    def _stored(self, name: str) -> Numbers:
        return self._gram(self._addresses.keys.tokens[name], key_id(name))

    def _raw_text(self, row: Row, token: int, piece: str, window: Numbers) -> tuple[Numbers, Numbers]:
        window = _extended(window, token)
        acts = bool(self._header) or not self._may_be_template(row, piece)
        if not self._header and (behind := self._behind(row, piece, self._after)) >= 0:
            after = self._whole(row, len(self._after) + behind)[0]
            window = self._windows(row.back(after - 1))[0] if after < len(row.ids) else self._blank
            acts = window != self._blank
            window = _extended(window, token) if behind else window
        return self._numbers(token, RAW, 0, window, self._none), window if acts else self._none

    def _raw_key(
        self, row: Row, token: int, piece: str, run: int, window: Numbers, key: Numbers
    ) -> tuple[Numbers, Numbers]:
        """`run`: so many tokens ago, a key ended whose last word the text since then may continue."""
        ending = Ending(None, None, False)
        if run or self._endings.may_be_in(token):
            ending = self._endings.within(run + 1, lambda n: row.ids[-n:] if n <= self.reach else row.last(n))
        if ending.whole is not None:
            key = self._stored(ending.whole)
        window = _extended(window, token)
        begins = piece.endswith(BEGINNINGS) or (not self._header and self._behind(row, piece, self._after) == 0)
        if ending.last is not None or (begins and key[0] != ABSENT):
            goes_on = window[0] != ABSENT and self._addresses.holds(np.array(window))
            window = window if goes_on else key if ending.last is None else self._stored(ending.last)
        return self._numbers(token, RAW, run + 1 if ending.open else 0, window, key), window


def _extended(window: Numbers, token: int) -> Numbers:
    """A window after one more token; one that holds no n-gram stays so."""
    return window if window[0] == ABSENT else [token, *window[:-2], window[-1]]
