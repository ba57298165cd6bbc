"""Text to token ids: the model's own chat template, and a mask of which tokens are content.

The template is most of a short prompt and the same for all, so everything downstream leans on two facts kept here:
prompts share their leading tokens (`shared_prefix`), and the memory looks at content tokens only (`ngram_windows`).
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

_MARK = "\u2063content\u2063"  # stands for the user's text while the template is rendered once
ABSENT = -1
# Before a chat template that tells the day: the same one always, so that a prompt is the same tomorrow.
TODAY = "{% macro strftime_now(format) %}01 Jan 2026{% endmacro %}"
# A word ends before these characters: scripts written without spaces (Thai, Lao, Myanmar, Khmer, Hiragana, Katakana,
# Chinese, Hangul), and variation selectors, which make an emoji of the character before them.
APART = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\ufe00-\ufe0f\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt; `content[i]` says whether token i is the user's own text.

    In training `key` is known too: the first and last + 1 token, counted among the content tokens, of the item's input.
    """

    ids: tuple[int, ...]
    content: tuple[bool, ...]
    key: tuple[int, int] | None = None
    continues_word: tuple[bool, ...] = ()  # for each content token: it goes on with the word of the token before it

    def content_ids(self) -> NDArray[np.int64]:
        """int64 [content tokens]: the user's own text."""
        return np.array([i for i, mine in zip(self.ids, self.content, strict=True) if mine], dtype=np.int64)


Pair = tuple[Prompt, tuple[int, ...]]  # a prompt and its answer, end-of-text included


class PromptEncoder:
    """Renders user text with the tokenizer's chat template, or as it is where the tokenizer has none.

    Args:
        tokenizer: a fast transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise UsageError("the model's tokenizer has no end-of-text token, so no answer could end")
        self.eos_id: int = tokenizer.eos_token_id
        rendered = self._render(_MARK) if getattr(tokenizer, "chat_template", None) else _MARK
        if rendered.count(_MARK) != 1:
            raise UsageError("the model's chat template does not hold the user's text exactly once")
        self._before, self._after = rendered.split(_MARK)
        self.has_template = bool(self._after)
        self._header = self._user_header() if self.has_template else ""

    def _render(self, *turns: str) -> str:
        """The text of a talk that the user begins."""
        roles, template = ("user", "assistant"), self.tokenizer.get_chat_template()
        talk = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        if "strftime_now" in template:
            template = TODAY + template
        rendered = self.tokenizer.apply_chat_template(
            talk, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    def _user_header(self) -> str:
        """What stands before the user's text in every turn: what the first and a later one have in common there."""
        before = self._before
        try:
            later = self._render("1", "2", _MARK).partition(_MARK)[0]
        except Exception:  # a template may refuse a second turn, by an error of its own making
            later = before
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before[::-1], later[::-1], strict=False)))
        return before[len(before) - same :].rpartition(self.tokenizer.eos_token)[2] or before

    def prompt(self, text: str, key: tuple[int, int] | None = None) -> Prompt:
        """Encode one user message, the template's generation prompt included; `key` is in characters of `text`."""
        start = len(self._before)
        return self._read(self._before + text + self._after, start, start + len(text), key)

    def parse(self, ids: Sequence[int]) -> Pair | None:
        """Tell a prompt and what follows it apart: what `prompt` and an answer make, or the last turn of a longer talk.

        Returns:
            The prompt and the answer's tokens so far; None where the ids are not of the template, or not as the
            tokenizer would have cut the prompt.
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
        """The prompt of a rendered text whose characters from `start` to `end` are the user's own."""
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
        """Encode a canonical answer, end-of-text included: the model must learn to stop."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos_id)

    def pair(self, example: Example) -> Pair:
        """Encode a training example."""
        return self.prompt(example.prompt, example.key), self.answer(example.answer)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to end-of-text."""
        ids = list(ids)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def _in_word(character: str) -> bool:
    """Letters, digits, the marks that combine with them (not those that make an emoji), and underscores."""
    kind = unicodedata.category(character)
    known = character == "_" or kind[0] in "LN" or kind in ("Mn", "Mc")
    return known and not APART.match(character)


def shared_prefix(prompts: Sequence[Prompt]) -> int:
    """How many leading tokens all prompts share and none holds content in; at least one token is left to each."""
    first = prompts[0]
    length = min(len(p.ids) for p in prompts) - 1
    for i in range(length):
        if any(p.ids[i] != first.ids[i] or p.content[i] for p in prompts):
            return i
    return length


def ngram_windows(
    prompt: Prompt, answer: Sequence[int], size: int, span: tuple[int, int] | None, mark: int, *, on_text: bool
) -> NDArray[np.int64]:
    """The n-gram each token sees: itself and what was before it in the span of the user's text and in the answer.

    The last token of the prompt, which predicts the first answer token, sees the n-gram that ends the span, and the
    answer goes on from there. So a memory acts where the answer is made, and an n-gram never mixes a question with the
    sentence around it.

    Args:
        prompt: the prompt.
        answer: answer token ids that follow it.
        size: N, the longest n-gram.
        span: first and last + 1 of the content tokens that matter; None: nothing sees anything.
        mark: token id that stands for the start of the span, so that a span of one token still makes a bigram.
        on_text: whether the span's own tokens see something too, as in the paper. All others see nothing, the
            template's above all.

    Returns:
        int64 [len(prompt.ids) + len(answer), size]: ``[t, 0]`` is the current token, ``[t, k]`` the one k back;
        `ABSENT` reaches past the mark, and throughout where the token sees nothing.
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
    """[tokens] -> [tokens, size], last token first."""
    padded = np.concatenate([np.full(size - 1, ABSENT), stream])
    return np.lib.stride_tricks.sliding_window_view(padded, size)[:, ::-1]


def extend_windows(last: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """One decoding step: windows [batch, N] of the last position and the token each row just produced.

    A row that saw nothing at the end of its prompt goes on seeing nothing.
    """
    following = np.concatenate([tokens[:, None], last[:, :-1]], axis=1)
    return np.where(last[:, :1] == ABSENT, ABSENT, following)
