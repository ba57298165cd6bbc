"""How fast a variant answers one prompt at a time: what a user waits for, measured with the variants taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engram_bench.backends.base import Backend
from engram_bench.prompts import Prompt

ROUNDS = 3  # every variant once a round, so that a machine that slows down slows all of them
NEW_TOKENS = 16


@dataclass(frozen=True)
class Speed:
    """At batch 1, medians over the rounds.

    Attributes:
        prefill_tokens_s: tokens of the prompt, template included, over `ttft_s`.
        decode_tokens_s: new tokens after the first, a second.
        ttft_s: seconds to the first token.
        overhead: decoding time of a token over the baseline's in the same round, less 1.
    """

    prefill_tokens_s: float
    decode_tokens_s: float
    ttft_s: float
    overhead: float


def measure(backend: Backend, adapters: Mapping[str, Any | None], prompt: Prompt) -> dict[str, Speed]:
    """Speed by variant; the first of `adapters` is the baseline that overheads are measured against."""
    first: dict[str, list[float]] = {name: [] for name in adapters}
    each: dict[str, list[float]] = {name: [] for name in adapters}
    for _ in range(ROUNDS):
        for name, adapter in adapters.items():
            with backend.attached(adapter):
                next(backend.stream(prompt, 1, ignore_eos=True))  # warm
                started = time.perf_counter()
                answer = backend.stream(prompt, NEW_TOKENS, ignore_eos=True)
                next(answer)
                begun = time.perf_counter()
                more = sum(1 for _ in answer)
                first[name].append(begun - started)
                each[name].append((time.perf_counter() - begun) / more)
    baseline = next(iter(each.values()))
    median = statistics.median
    return {
        name: Speed(
            prefill_tokens_s=len(prompt.ids) / median(first[name]),
            decode_tokens_s=1 / median(each[name]),
            ttft_s=median(first[name]),
            overhead=median(own / base for own, base in zip(each[name], baseline, strict=True)) - 1,
        )
        for name in adapters
    }
