"""A batch being decoded in MLX, on mlx-lm's caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Caches = list[Any]  # mlx-lm's caches, one per layer


class Decoding:
    """Texts being decoded: their last logits and their caches. See `decoding.Batch` for the methods."""

    def __init__(
        self, step: Callable[..., mx.array], logits: mx.array, caches: Caches, windows: NDArray[np.int64]
    ) -> None:
        self._step, self._logits, self._caches, self.windows = step, logits, caches, windows

    def choose(self, rows: NDArray[np.int64], temperature: float, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        return _choose(self._logits, rows, temperature, draws)

    def keep(self, rows: NDArray[np.int64]) -> None:
        for cache in self._caches:
            cache.filter(mx.array(rows))

    def advance(self, tokens: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        at = np.ones((len(tokens), 1), dtype=bool)
        self._logits = self._step(tokens[:, None], windows[:, None], self._caches, at)
        self.windows = windows


def _choose(
    logits: mx.array, rows: NDArray[np.int64], temperature: float, draws: NDArray[np.float64]
) -> NDArray[np.int64]:
    """See `decoding.Batch.choose`; logits [rows, vocabulary]."""
    chosen: NDArray[np.int64] = np.array(logits.argmax(-1)).astype(np.int64)[rows]
    drawn = ~np.isnan(draws)
    if drawn.any():
        wanted = logits[mx.array(rows[drawn])].astype(mx.float32)
        cumulative = mx.softmax(wanted / temperature, axis=-1).cumsum(-1)
        # Rounding leaves the last entry slightly off 1; scale by it, so that no draw exceeds it.
        points = mx.array(draws[drawn, None], dtype=mx.float32) * cumulative[:, -1:]
        found = np.array((cumulative < points).sum(-1)).astype(np.int64)
        chosen[drawn] = found.clip(max=logits.shape[-1] - 1)
    return chosen
