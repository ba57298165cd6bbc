"""Scores of answers: pure functions of texts and token counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def exact(output: str, expected: str) -> bool:
    """Whether the whole output is the canonical answer, apart from outer white space."""
    return output.strip() == expected.strip()


def prefix(output: str, expected: str) -> bool:
    """Whether the output starts with the canonical answer: the more lenient rule of engram-poc's published figures."""
    return output.strip().startswith(expected.strip())


def contains(output: str, value: str) -> bool:
    """Whether a value stands in the output as whole words, in its own case."""
    return re.search(rf"(?<!\w){re.escape(value.strip())}(?!\w)", output) is not None


def says(output: str, value: str, prompt: str, *, in_sentence: bool = False) -> bool:
    """Whether an output contains a value and does not only echo it: repeat it with the word that follows in the prompt.

    To "A or B?", the answer "A or" echoes, and "A" or "It is A." says A. With `in_sentence`, a sentence of the prompt
    may be repeated, and only an output that runs on into the next one echoes.
    """
    more = re.compile(r"\W*[.?!]\W+\w+" if in_sentence else r"\W+\w+")
    for found in re.finditer(rf"(?<!\w){re.escape(value.strip())}(?!\w)", output):
        following = more.match(output, found.end())
        if not following or found[0] + following[0] not in prompt:
            return True
    return False


def value_only(output: str, expected: str) -> bool:
    """Whether an answer is not exact but has the right value in it: as whole words, in any case."""
    return not exact(output, expected) and contains(output.casefold(), expected.casefold())


def agreement(outputs: Sequence[str]) -> float:
    """Share of the most common output among samples of one prompt, right or wrong, in (0, 1].

    Raises:
        ValueError: `outputs` is empty.
    """
    if not outputs:
        raise ValueError("agreement is undefined for no samples")
    return Counter(output.strip() for output in outputs).most_common(1)[0][1] / len(outputs)
