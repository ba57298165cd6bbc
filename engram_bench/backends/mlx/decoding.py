"""A batch being decoded in MLX, on mlx-lm's caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Caches = list[Any]  # mlx-lm's caches, one per layer; with a convolution, a `Recent` follows


class Recent:
    """The values of each row's last tokens, which memories' convolutions read. It is filtered as mlx-lm's caches are.

    Args:
        values: [rows, memories, tokens, d].
    """

    def __init__(self, values: mx.array) -> None:
        self.values, self._lengths = values, mx.array([], dtype=mx.int32)

    def merge(self, _: object) -> Recent:
        return Recent(self.values)

    def filter(self, rows: mx.array) -> None:
        self.values = self.values[rows]

    def prepare(self, *, lengths: list[int], right_padding: list[int]) -> None:
        """Tell the number of tokens in each row of the next forward, if not all are equal."""
        self._lengths = mx.array(lengths)

    def finalize(self) -> None:
        pass  # its rows always end together

    def update(self, new: mx.array) -> None:
        """Add the values of the next tokens, [rows, memories, tokens, d]."""
        count = self.values.shape[2]
        lengths = self._lengths if self._lengths.size else mx.full(len(new), new.shape[2])
        at = lengths[:, None] + mx.arange(count)
        every = mx.concatenate([self.values, new], axis=2)
        self.values = mx.take_along_axis(every, at[:, None, :, None], axis=2)
        self._lengths = self._lengths[:0]


class Decoding:
    """Texts being decoded: their last logits and their caches. See `decoding.Batch` for the methods."""

    def __init__(
        self, step: Callable[..., mx.array], logits: mx.array, caches: Caches, windows: NDArray[np.int64]
    ) -> None:
        self._step, self._logits, self._caches, self.windows = step, logits, caches, windows

    def choose(self, rows: NDArray[np.int64], temperature: float, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        return _choose(self._logits, rows, temperature, draws)

    def log_probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        return np.array(log_softmax(self._logits[mx.array(rows)]).astype(mx.float16))

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


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities [..., vocabulary], float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
