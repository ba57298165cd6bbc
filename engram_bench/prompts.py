"""Text to token ids: the model's own chat template, and a mask of the content tokens (the user's own text).

The template makes up most of a short prompt and is the same for every prompt. So prompts share their leading tokens
(`shared_prefix`), and the memory reads only content tokens and the answer (`ngram_windows`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_bench.data.items import Example
from engram_bench.errors import UsageError

_MARK = "\u2063content\u2063"  # placeholder for the user's text, to split the rendered template
ABSENT = -1  # in an n-gram window: no token here
# Prepended to a chat template that prints the date: the date is fixed, so that prompts do not change from day to day.
TODAY = "{% macro strftime_now(format) %}01 Jan 2026{% endmacro %}"
# Each of these characters is a word of its own: scripts whose words are not separated by spaces (Thai, Lao, Myanmar,
# Khmer, Hiragana, Katakana, Chinese, Hangul), and variation selectors, which turn the character before into an emoji.
APART = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\ufe00-\ufe0f\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt; `content[i]` is true if token i is part of the user's own text.

    `key`, set only in training, is the item's input as a range [start, end) of content tokens.
    """

    ids: tuple[int, ...]
    content: tuple[bool, ...]
    key: tuple[int, int] | None = None
    continues_word: tuple[bool, ...] = ()  # per content token: it continues the word of the token before

    def content_ids(self) -> NDArray[np.int64]:
        """int64 [content tokens]: the token ids of the user's own text."""
        return np.array([i for i, mine in zip(self.ids, self.content, strict=True) if mine], dtype=np.int64)


Pair = tuple[Prompt, tuple[int, ...]]  # a prompt and its answer's token ids, end-of-text included


class PromptEncoder:
    """Renders user text with the tokenizer's chat template, or unchanged if the tokenizer has none.

    Args:
        tokenizer: a fast transformers tokenizer.

    Raises:
        UsageError: the tokenizer has no end-of-text token, or its template does not contain the user's text once.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise UsageError("the model's tokenizer has no end-of-text token to end an answer; choose another model")
        self.eos_id: int = tokenizer.eos_token_id
        rendered = self._render(_MARK) if getattr(tokenizer, "chat_template", None) else _MARK
        if rendered.count(_MARK) != 1:
            raise UsageError("the model's chat template must contain the user's text once; choose another model")
        self._before, self._after = rendered.split(_MARK)
        self.has_template = bool(self._after)
        self._header = self._user_header() if self.has_template else ""

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
            later = self._render("1", "2", _MARK).partition(_MARK)[0]
        except Exception:  # a template may raise any exception to refuse a second turn
            later = before
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before[::-1], later[::-1], strict=False)))
        return before[len(before) - same :].rpartition(self.tokenizer.eos_token)[2] or before

    def prompt(self, text: str, key: tuple[int, int] | None = None) -> Prompt:
        """Encode one user message with the template's generation prompt; `key` is a character span of `text`."""
        start = len(self._before)
        return self._read(self._before + text + self._after, start, start + len(text), key)

    def parse(self, ids: Sequence[int]) -> Pair | None:
        """Split token ids into a prompt and the answer after it; in a longer conversation, those of its last turn.

        Returns:
            The prompt and the answer's tokens so far. None if the ids do not follow the template, or if the tokenizer
            would split the prompt's text into other tokens.
        """
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        end = text.rfind(self._after)
        start = text.rfind(self._header, 0, max(end, 0)) + len(self._header)
        if end < 0 or start < len(self._header):
            return None
        prompt = self._read(text[:end] + self._after, start, end)
        count = len(prompt.ids)
        return (prompt, tuple(ids[count:])) if prompt.ids == tuple(ids[:count]) else None

    def _read(self, whole: str, start: int, end: int, key: tuple[int, int] | None = None) -> Prompt:
        """Encode a rendered text; its characters from `start` to `end` are the user's own text."""
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        text = whole[start:end]
        content = tuple(a < end and b > start for a, b in encoded["offset_mapping"])
        offsets = [span for span, mine in zip(encoded["offset_mapping"], content, strict=True) if mine]
        spans = [(max(0, a - start), b - start) for a, b in offsets]
        continues_word = tuple(a > 0 and _in_word(text[a - 1]) and _in_word(text[a]) for a, _ in spans)
        found = None
        if key is not None:
            inside = [i for i, (a, b) in enumerate(spans) if a < key[1] and b > key[0]]
            found = (inside[0], inside[-1] + 1)
        return Prompt(tuple(encoded["input_ids"]), content, found, continues_word)

    def answer(self, text: str) -> tuple[int, ...]:
        """Encode a right answer with its end-of-text token, so that the model learns to stop."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos_id)

    def pair(self, example: Example) -> Pair:
        """Encode a training example."""
        return self.prompt(example.prompt, example.key), self.answer(example.answer)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode generated ids up to end-of-text."""
        ids = list(ids)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    @property
    def header_ids(self) -> tuple[int, ...]:
        """Token ids of the template's text before every user turn; none without a chat template."""
        return self._read(self._header, 0, 0).ids if self._header else ()


def continues(before: str, after: str) -> bool:
    """Whether a text continues the word that ends the text before it."""
    return bool(before and after) and _in_word(before[-1]) and _in_word(after[0])


def _in_word(character: str) -> bool:
    """Whether a character belongs to a word: a letter, digit, combining mark or underscore, but not in `APART`."""
    kind = unicodedata.category(character)
    known = character == "_" or kind[0] in "LN" or kind in ("Mn", "Mc")
    return known and not APART.match(character)


def shared_prefix(prompts: Sequence[Prompt]) -> int:
    """Number of leading template tokens that all prompts share; at least one token of each prompt is left over."""
    first = prompts[0]
    length = min(len(p.ids) for p in prompts) - 1
    for i in range(length):
        if any(p.ids[i] != first.ids[i] or p.content[i] for p in prompts):
            return i
    return length


def ngram_windows(
    prompt: Prompt, answer: Sequence[int], size: int, span: tuple[int, int] | None, mark: int, *, on_text: bool
) -> NDArray[np.int64]:
    """The n-gram that each token reads: the token itself and its predecessors in the span and the answer.

    The prompt's last token predicts the first answer token; it reads the n-gram that ends the span. The answer's tokens
    continue from there. So a memory acts where the answer is made, and an n-gram never mixes the span with the sentence
    around it.

    Args:
        prompt: the prompt.
        answer: token ids of the answer.
        size: N, the longest n-gram.
        span: range [start, end) of the content tokens that the memory reads; None: no token reads an n-gram.
        mark: token id placed before the span, so that a span of one token still makes a bigram.
        on_text: whether the span's own tokens read n-grams too, as in the paper. The prompt's other tokens, such as
            the template's, never do.

    Returns:
        int64 [len(prompt.ids) + len(answer), size]: ``[t, 0]`` is the current token, ``[t, k]`` the one k before
        it. `ABSENT` fills positions before the mark, and the whole row of a token that reads no n-gram.
    """
    windows = np.full((len(prompt.ids) + len(answer), size), ABSENT, dtype=np.int64)
    if span is not None:
        key = prompt.content_ids()[slice(*span)]
        seen = _windows(np.array([mark, *key, *answer], dtype=np.int64), size)[1:]
        if on_text:
            windows[np.flatnonzero(prompt.content)[slice(*span)]] = seen[: len(key)]
        windows[len(prompt.ids) - 1 :] = seen[len(key) - 1 :]
    return windows


def _windows(stream: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """[tokens] -> [tokens, size], each row starting with its current token."""
    padded = np.concatenate([np.full(size - 1, ABSENT), stream])
    return np.lib.stride_tricks.sliding_window_view(padded, size)[:, ::-1]


def extend_windows(last: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """One decoding step: extend the last position's windows [batch, N] by the token that each row just produced.

    A row whose last token reads no n-gram stays `ABSENT`.
    """
    following = np.concatenate([tokens[:, None], last[:, :-1]], axis=1)
    return np.where(last[:, :1] == ABSENT, ABSENT, following)
