"""A batch being decoded in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

AT_ONCE = 32  # rows sampled together: [32, 50,000] float32 fits in a processor's cache
BLOCK = 256  # vocabulary entries


class Decoding:
    """Texts being decoded: last logits [rows, vocabulary], a cache and its mask. See `decoding.Batch` for methods.

    Args:
        step: `TorchModel.step`.
        cache: keys and values of the prompts without their last tokens.
        mask: which of these positions hold tokens, [rows, tokens].
        last: last token of each prompt, [rows].
        windows: n-gram windows of these last tokens, [rows, N + 1].
    """

    logits: Tensor
    windows: NDArray[np.int64]

    def __init__(
        self,
        step: Callable[..., Tensor],
        cache: Cache,
        mask: NDArray[np.int64],
        last: NDArray[np.int64],
        windows: NDArray[np.int64],
    ) -> None:
        self._step, self._cache, self._mask = step, cache, mask
        self.advance(last, windows)

    def choose(self, rows: NDArray[np.int64], temperature: float, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        return _choose(self.logits, rows, temperature, draws)

    def log_probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        wanted = self.logits[torch.from_numpy(rows).to(self.logits.device)]
        logs: NDArray[np.float16] = wanted.float().log_softmax(-1).half().cpu().numpy()
        return logs

    def keep(self, rows: NDArray[np.int64]) -> None:
        self._cache.batch_select_indices(torch.from_numpy(rows).to(self.logits.device))
        self._mask = self._mask[rows]

    def advance(self, tokens: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        self._mask = np.concatenate([self._mask, np.ones((len(tokens), 1), dtype=np.int64)], axis=1)
        positions = self._mask.sum(axis=1, keepdims=True) - 1
        self.logits = self._step(tokens[:, None], self._mask, positions, windows[:, None], self._cache, keep=1)[:, -1]
        self.windows = windows


def _choose(
    logits: Tensor, rows: NDArray[np.int64], temperature: float, draws: NDArray[np.float64]
) -> NDArray[np.int64]:
    """See `decoding.Batch.choose`; logits [rows, vocabulary]."""
    found = [_most_probable(logits)]
    drawn = ~np.isnan(draws)
    if drawn.any():
        # One copy for both, because each copy waits for the device. float32 represents all row numbers exactly.
        both = torch.from_numpy(np.stack([rows[drawn], draws[drawn]]).astype(np.float32)).to(logits.device)
        for start in range(0, both.shape[1], AT_ONCE):
            some, points = both[:, start : start + AT_ONCE]
            found.append(_sampled(logits[some.long()], temperature, points))
    on_host: NDArray[np.int64] = torch.cat(found).cpu().numpy()
    chosen = on_host[rows]
    chosen[drawn] = on_host[len(logits) :]
    return chosen


def _most_probable(logits: Tensor) -> Tensor:
    """Argmax, [rows, vocabulary] -> [rows]. Finding an index is slow, above all in bfloat16, so search one block."""
    blocks = _in_blocks(logits)
    block = blocks.amax(-1).max(-1).indices
    return block * BLOCK + _selected(blocks, block).max(-1).indices


def _sampled(logits: Tensor, temperature: float, points: Tensor) -> Tensor:
    """Tokens at `points` [rows] of the rows' cumulative distributions, summed by block and then within one block.

    Overwrites `logits` if they are float32.
    """
    blocks = _in_blocks(logits.float())
    blocks = blocks.sub_(blocks.amax((1, 2), keepdim=True)).div_(temperature).exp_()
    ends = blocks.sum(-1).cumsum(-1)
    wanted = points[:, None] * ends[:, -1:]  # scaled by the total, so that no draw exceeds the last sum
    block = torch.searchsorted(ends, wanted).clamp(max=ends.shape[1] - 1)
    inside = _selected(blocks, block[:, 0]).cumsum(-1)
    before = ends.gather(1, block) - inside[:, -1:]
    place = torch.searchsorted(inside, wanted - before).clamp(max=BLOCK - 1)
    return (block * BLOCK + place).squeeze(1).clamp(max=logits.shape[1] - 1)


def _in_blocks(logits: Tensor) -> Tensor:
    """[rows, vocabulary] -> [rows, blocks, BLOCK], padded with -inf, which is never chosen."""
    short = -logits.shape[1] % BLOCK
    return (pad(logits, (0, short), value=-torch.inf) if short else logits).view(len(logits), -1, BLOCK)


def _selected(blocks: Tensor, block: Tensor) -> Tensor:
    """Select one block of each row: [rows, BLOCK]."""
    return blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0]
