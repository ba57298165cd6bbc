"""A batch being decoded in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache


class Decoding:
    """Rows being decoded: their last logits, their cache and its mask. See `decoding.Batch` for the methods."""

    def __init__(
        self,
        step: Callable[..., Tensor],
        logits: Tensor,
        cache: Cache,
        mask: NDArray[np.int64],
        windows: NDArray[np.int64],
    ) -> None:
        self._step, self._logits, self._cache, self._mask, self.windows = step, logits, cache, mask, windows

    def choose(self, temperature: float, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        return _choose(self._logits[:, -1], temperature, draws)

    def keep(self, rows: NDArray[np.int64]) -> None:
        self._cache.batch_select_indices(torch.from_numpy(rows).to(self._logits.device))
        self._mask = self._mask[rows]

    def advance(self, tokens: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        self._mask = np.concatenate([self._mask, np.ones((len(tokens), 1), dtype=np.int64)], axis=1)
        positions = self._mask.sum(axis=1, keepdims=True) - 1
        self._logits = self._step(tokens[:, None], self._mask, positions, windows[:, None], self._cache, keep=1)
        self.windows = windows


def _choose(logits: Tensor, temperature: float, draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """See `decoding.Batch.choose`; logits [rows, vocabulary]."""
    chosen = logits.max(-1).indices  # argmax of bfloat16 takes 5 times as long
    sampled = np.flatnonzero(~np.isnan(draws))
    if len(sampled):
        # Together, as each copy to a device waits for it; float32 has room for any number of rows.
        both = torch.from_numpy(np.stack([sampled, draws[sampled]]).astype(np.float32)).to(logits.device)
        rows, points = both[0].long(), both[1].unsqueeze(-1)
        cumulative = (logits[rows].float() / temperature).softmax(-1).cumsum(-1)
        # Scaled by the last entry, which rounding leaves a little off 1, so that a draw never falls past the end.
        found = torch.searchsorted(cumulative, points * cumulative[:, -1:]).squeeze(-1)
        chosen[rows] = found.clamp(max=logits.shape[-1] - 1)
    on_host: NDArray[np.int64] = chosen.cpu().numpy()
    return on_host
