"""Text to token ids: the model's chat template or a separator, and a mask of the content tokens (the user's own text).

The template makes up most of a short prompt and is the same for every prompt. So prompts share their leading tokens
(`shared_prefix`), and the memory reads only content tokens and the answer (`ngram_windows`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_bench.data.items import Example, Item
from engram_bench.data.plain_text import SplitTokenizer
from engram_bench.errors import UsageError

_MARK = "\u2063content\u2063"  # placeholder for the user's text, to split the rendered template
SEPARATOR = "\nAnswer:\n"  # follows the user's text if the tokenizer has no chat template
BETWEEN = "\n\n"  # follows an earlier answer if the tokenizer has no chat template
ABSENT = -1  # in an n-gram window: no token here
# Prepended to a chat template that prints the date: the date is fixed, so that prompts do not change from day to day.
TODAY = "{% macro strftime_now(format) %}01 Jan 2026{% endmacro %}"


class Span(NamedTuple):
    """The part of a user's text that a memory reads: content tokens [start, end).

    Attributes:
        tokens: the token ids that it hashes: those of the range, or of the key that stands there, see `memory.keys`.
        key: number that identifies the key; `ABSENT` if the memory does not look for keys.
        whole: whether the range counts all tokens of the prompt, the template's too, not only content tokens.
    """

    start: int
    end: int
    tokens: tuple[int, ...]
    key: int = ABSENT
    whole: bool = False


class Message(NamedTuple):
    """A message of a talk: its text, its tokens' places in the prompt, and each one's range of characters."""

    text: str
    tokens: tuple[int, ...]
    places: tuple[tuple[int, int], ...]

    def last_token(self, start: int, end: int) -> int:
        """The place in the prompt of the last token that holds some of the characters [start, end)."""
        return max(at for at, (a, b) in zip(self.tokens, self.places, strict=True) if a < end and b > start)


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt.

    Attributes:
        ids: token ids.
        content: for each token, whether it is part of the user's own text.
        text: the user's own text.
        places: for each content token, the range [start, end) of its characters in `text`.
        key: set only in training: the item's input, a range [start, end) of characters in `text`.
        items: set only in training: those whose values are the answer.
        earlier: number of leading tokens before the last user turn, if there are earlier turns; else 0.
        spoken: the messages of these earlier turns.
    """

    ids: tuple[int, ...]
    content: tuple[bool, ...]
    text: str = ""
    places: tuple[tuple[int, int], ...] = ()
    key: tuple[int, int] | None = None
    earlier: int = 0
    spoken: tuple[Message, ...] = ()
    items: tuple[Item, ...] = field(default=(), compare=False)

    def messages(self) -> list[Message]:
        """All messages of the talk, the user's own text last."""
        own = tuple(place for place, mine in enumerate(self.content) if mine)
        return [*self.spoken, Message(self.text, own, self.places)]

    def content_ids(self) -> NDArray[np.int64]:
        """int64 [content tokens]: the token ids of the user's own text."""
        return np.array([i for i, mine in zip(self.ids, self.content, strict=True) if mine], dtype=np.int64)

    def tokens_at(self, start: int, end: int) -> tuple[int, int]:
        """The content tokens that hold the characters [start, end) of the text: a range [first, last + 1)."""
        inside = [i for i, (a, b) in enumerate(self.places) if a < end and b > start]
        return inside[0], inside[-1] + 1


Pair = tuple[Prompt, tuple[int, ...]]  # a prompt and its answer's token ids, end-of-text included
Turns = Sequence[tuple[str, str]]  # earlier turns of a conversation: the user's text and the assistant's answer


class PromptEncoder:
    """Renders user text with the tokenizer's chat template, or puts `SEPARATOR` after it if there is no template.

    Special tokens come from the template alone: a text that names one, such as ``<|im_end|>``, is read as plain text.

    Args:
        tokenizer: a fast transformers tokenizer.

    Attributes:
        has_template: whether a chat template, rather than `SEPARATOR`, ends the user's turn.

    Raises:
        UsageError: the tokenizer has no end-of-text token, or its template does not contain the user's text once.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise UsageError("the model's tokenizer has no end-of-text token to end an answer; choose another model")
        self.eos_id: int = tokenizer.eos_token_id
        template = bool(getattr(tokenizer, "chat_template", None))
        rendered = self._render(_MARK) if template else _MARK
        if rendered.count(_MARK) != 1:
            raise UsageError("the model's chat template must contain the user's text once; choose another model")
        self.has_template = not rendered.endswith(_MARK)
        # A tokenizer without a template puts its start token before a text by itself.
        self._start = () if template else _start_ids(tokenizer)
        self._tokens = SplitTokenizer(tokenizer, rendered)
        self._before, self._after = map(self._tokens.sealed, rendered.split(_MARK))
        self._after = self._after or SEPARATOR
        self._header = self._user_header() if self.has_template else ""
        self._templates: dict[int, list[str]] = {}  # sealed template texts by number of earlier turns

    def _render(self, *turns: str) -> str:
        """Render a conversation of alternating turns, starting with the user, and open the assistant's next turn."""
        roles, template = ("user", "assistant"), self.tokenizer.get_chat_template()
        talk = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        if "strftime_now" in template:
            template = TODAY + template
        rendered = self.tokenizer.apply_chat_template(
            talk, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    def _user_header(self) -> str:
        """The template text before every user turn: the common ending of the texts before a first and a later turn."""
        before = self._before
        try:
            later = self._tokens.sealed(self._render("1", "2", _MARK).partition(_MARK)[0])
        except Exception:  # a template may raise any exception to refuse a second turn
            later = before
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before[::-1], later[::-1], strict=False)))
        return before[len(before) - same :].rpartition(self._tokens.sealed(self.tokenizer.eos_token))[2] or before

    def describe(self) -> str:
        """How the user's text becomes a prompt, for the report."""
        return "the model's chat template" if self.has_template else f"the text and {SEPARATOR!r} (no chat template)"

    def prompt(self, text: str, key: tuple[int, int] | None = None, earlier: Turns = ()) -> Prompt:
        """Encode one user message with the template's generation prompt, after earlier turns if any are given.

        Args:
            text: the user's message; it alone is content.
            key: a character span of `text`.
            earlier: the conversation so far. Without a template, `SEPARATOR` and `BETWEEN` divide its texts.

        Raises:
            UsageError: the tokenizer cannot split a special token that a text names, or the template takes no earlier
                turns.
        """
        *before, after = self._template(len(earlier))
        opening, ranges = "", []
        for part, message in zip(before, [*(part for turn in earlier for part in turn), text], strict=True):
            opening += part
            ranges.append((len(opening), len(opening) + len(message)))
            opening += message
        return self._read(opening + after, ranges, key)

    def _template(self, turns: int) -> list[str]:
        """The sealed texts before, between and after the messages of a conversation with `turns` earlier turns."""
        if not turns:
            return [self._before, self._after]
        if not self.has_template:
            return [self._before, *[SEPARATOR, BETWEEN] * turns, self._after]
        if turns not in self._templates:
            marks = [f"{_MARK}{i}{_MARK}" for i in range(2 * turns + 1)]
            try:
                rendered = self._render(*marks)
            except Exception:  # a template may raise any exception to refuse a second turn
                rendered = ""
            parts = re.split("|".join(marks), rendered)
            if re.findall("|".join(marks), rendered) != marks:
                raise UsageError("the model's chat template takes no earlier turns; leave out the variant")
            self._templates[turns] = [self._tokens.sealed(part) for part in parts]
        return self._templates[turns]

    def _read(self, whole: str, messages: Sequence[tuple[int, int]], key: tuple[int, int] | None = None) -> Prompt:
        """Encode a sealed text with messages at some ranges of characters; the last one is the user's own text."""
        ids, places = self._tokens.encode(whole)
        *spoken, own = (_message(whole, a, b, places, len(self._start)) for a, b in messages)
        inside = set(own.tokens)
        content = tuple(at in inside for at in range(len(self._start) + len(ids)))
        before = sum(b <= messages[-1][0] for _, b in places) + len(self._start) if spoken else 0
        return Prompt((*self._start, *ids), content, own.text, own.places, key, before, tuple(spoken))

    def answer(self, text: str) -> tuple[int, ...]:
        """Encode a right answer with its end-of-text token, so that the model learns to stop.

        Raises:
            UsageError: the tokenizer cannot split a special token that the text names.
        """
        return (*self._tokens.encode(text)[0], self.eos_id)

    def ending(self, text: str, stop_ids: Collection[int]) -> str | None:
        """What in an answer's text ends the answer or the user's turn: one of `stop_ids`, or a token of the template.

        Returns:
            The token's text; None if there is none, so that the model can give this answer.
        """
        if self._after in text:
            return self._after
        turn = self._tokens.special_ids(self._header + self._after) - {self.tokenizer.bos_token_id}
        named = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = next((i for i in (*named, *self.answer(text)[:-1]) if i in turn or i in stop_ids), None)
        return None if found is None else str(self.tokenizer.decode([found], skip_special_tokens=False))

    def pair(self, example: Example) -> Pair:
        """Encode a training example."""
        return replace(self.prompt(example.prompt, example.key), items=example.items), self.answer(example.answer)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode generated ids up to end-of-text."""
        ids = list(ids)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    @property
    def header_ids(self) -> tuple[int, ...]:
        """Token ids of the template's text before every user turn; none without a chat template."""
        return self._read(self._header, [(0, 0)]).ids if self._header else ()


def _message(whole: str, start: int, end: int, places: Sequence[tuple[int, int]], skipped: int) -> Message:
    """The message at the characters [start, end) of a text; `places` of its tokens, of which `skipped` come before."""
    inside = [at for at, (a, b) in enumerate(places) if a < end and b > start]
    own = tuple((max(0, places[at][0] - start), places[at][1] - start) for at in inside)
    return Message(whole[start:end], tuple(skipped + at for at in inside), own)


def _start_ids(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that a tokenizer puts before every text by itself."""
    encoded = tokenizer("x", return_special_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return tuple(i for i, _ in takewhile(itemgetter(1), pairs))


def shared_prefix(prompts: Sequence[Prompt]) -> int:
    """Number of leading template tokens that all prompts share; at least one token of each prompt is left over."""
    first = prompts[0]
    length = min(len(p.ids) for p in prompts) - 1
    for i in range(length):
        if any(p.ids[i] != first.ids[i] or p.content[i] for p in prompts):
            return i
    return length


def ngram_windows(
    prompt: Prompt, answer: Sequence[int], size: int, span: Span | None, mark: int, *, on_text: bool
) -> NDArray[np.int64]:
    """The n-gram that each token reads: the token itself and its predecessors in the span and the answer.

    The prompt's last token predicts the first answer token; it reads the n-gram that ends the span. The answer's tokens
    continue from there. So a memory acts where the answer is made, and an n-gram never mixes the span with the sentence
    around it. A whole prompt is read as in the paper: each token reads the n-grams that end at it, and `mark` pads the
    text on the left.

    Args:
        prompt: the prompt.
        answer: token ids of the answer.
        size: N, the longest n-gram.
        span: the tokens that the memory reads; None: no token reads an n-gram.
        mark: token id placed before the span, so that a span of one token still makes a bigram.
        on_text: whether the span's own tokens read n-grams too, as in the paper. The prompt's other tokens never do.

    Returns:
        int64 [len(prompt.ids) + len(answer), size + 1]: ``[t, 0]`` is the current token, ``[t, k]`` the one k before
        it, ``[t, size]`` the span's key. `ABSENT` fills positions before the mark, and the whole row of a token that
        reads no n-gram.
    """
    windows = blank_windows(len(prompt.ids) + len(answer), size)
    if span is not None:
        before = [mark] * (size if span.whole else 1)
        if on_text:  # the tokens that stand there: a key's own tokens may be others
            every = np.arange(len(prompt.ids)) if span.whole else np.flatnonzero(prompt.content)
            places = every[span.start : span.end]
            windows[places] = _windows([*before, *np.array(prompt.ids)[places]], size, span.key)[len(before) :]
        seen = _windows([*before, *span.tokens, *answer], size, span.key)
        windows[len(prompt.ids) - 1 :] = seen[len(before) + len(span.tokens) - 1 :]
    return windows


def blank_windows(tokens: int, size: int) -> NDArray[np.int64]:
    """`ngram_windows` of tokens that read no n-gram: [tokens, size + 1]."""
    return np.full((tokens, size + 1), ABSENT, dtype=np.int64)


def _windows(stream: Sequence[int], size: int, key: int) -> NDArray[np.int64]:
    """[tokens] -> [tokens, size + 1]: each row starts with its current token and ends with the key."""
    padded = np.array([*[ABSENT] * (size - 1), *stream], dtype=np.int64)
    grams = np.lib.stride_tricks.sliding_window_view(padded, size)[:, ::-1]
    return np.concatenate([grams, np.full((len(stream), 1), key)], axis=1)


def extend_windows(last: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """One decoding step: extend the last position's windows [batch, N + 1] by the token that each row just produced.

    A row whose last token reads no n-gram stays `ABSENT`.
    """
    following = np.concatenate([tokens[:, None], last[:, :-2], last[:, -1:]], axis=1)
    return np.where(last[:, :1] == ABSENT, ABSENT, following)
