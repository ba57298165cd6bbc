"""What one answer is worth: pure functions of texts and token counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def exact(output: str, expected: str) -> bool:
    """The whole output is the canonical answer, outer white space aside."""
    return output.strip() == expected.strip()


def prefix(output: str, expected: str) -> bool:
    """The output starts with the canonical answer: the laxer rule of the figures published for engram-poc."""
    return output.strip().startswith(expected.strip())


def consistency(outputs: Sequence[str]) -> float:
    """Share of the commonest output among samples of one prompt, in (0, 1].

    Raises:
        ValueError: no outputs.
    """
    if not outputs:
        raise ValueError("consistency of no samples")
    return Counter(output.strip() for output in outputs).most_common(1)[0][1] / len(outputs)


def token_efficiency(canonical_tokens: int, generated_tokens: int) -> float:
    """Tokens the answer needs over tokens that were generated, at most 1; 0 where nothing was generated."""
    return min(1.0, canonical_tokens / generated_tokens) if generated_tokens else 0.0
