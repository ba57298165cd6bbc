"""A hearing memory as an adapter: what both frameworks share. See `memory.hearing` for what it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engram_bench.backends.base import WithoutNgrams
from engram_bench.memory.hearing import SIZE, HeardKeys
from engram_bench.prompts import Prompt, Span


class Hearing(WithoutNgrams):
    """The part of `base.Adapter` that needs only the known keys; no gates, no dropout."""

    ngram_size = SIZE
    acts_on_text, acts_on_template = True, False
    keys: HeardKeys

    def span(self, prompt: Prompt) -> Span | None:
        return self.keys.span(prompt)

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        return self.keys.windows(prompt, answer)
