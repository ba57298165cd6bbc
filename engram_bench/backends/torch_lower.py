"""Frozen lower layers, run once an example: below the first layer that carries a memory, an epoch is like another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from engram_bench.prompts import Pair

MOST_BYTES = 2 << 30  # kept in all; examples beyond it are run from the bottom every time


class LowerLayers:
    """Hidden states that enter layer `first`, kept by example from the first forward that made them.

    They depend on the tokens alone, so what is kept is what would be computed again, up to the rounding of another
    batch's shape.

    Args:
        layers: the model's transformer blocks.
        first: the lowest one that trains, or reads what trains; 0: nothing is below it, and nothing is kept.
    """

    def __init__(self, layers: nn.ModuleList, first: int) -> None:
        self._below, self._first = list(layers)[:first], layers[first]
        self._kept: dict[Pair, Tensor] = {}
        self._bytes = 0

    @contextmanager
    def skipped(self, batch: Sequence[Pair], tokens: int) -> Iterator[None]:
        """While it lasts, a forward of `batch` (left-padded, `tokens` before the padding) skips what is known of it.

        Args:
            batch: the examples, in the order of the rows.
            tokens: how many leading tokens of each prompt are in the cache and not in the rows.
        """
        if not self._below:
            yield
        elif all(pair in self._kept for pair in batch):
            with self._replaced(self._padded([self._kept[pair] for pair in batch])):
                yield
        else:
            handle = self._first.register_forward_pre_hook(
                lambda _, args, kwargs: self._keep(batch, tokens, args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
                prepend=True,  # what enters the layer, before a memory adds to it
            )
            try:
                yield
            finally:
                handle.remove()

    def _keep(self, batch: Sequence[Pair], tokens: int, hidden: Tensor) -> None:
        for pair, row in zip(batch, hidden.detach(), strict=True):
            length = len(pair[0].ids) + len(pair[1]) - 1 - tokens  # an answer's last token is never read
            if self._bytes < MOST_BYTES:
                self._kept[pair] = row[-length:].clone()
                self._bytes += self._kept[pair].nbytes

    @staticmethod
    def _padded(rows: Sequence[Tensor]) -> Tensor:
        hidden = rows[0].new_zeros(len(rows), max(map(len, rows)), rows[0].shape[-1])
        for row, states in zip(hidden, rows, strict=True):
            row[-len(states) :] = states
        return hidden

    @contextmanager
    def _replaced(self, hidden: Tensor) -> Iterator[None]:
        """The layers below hand `hidden` up and do nothing else; their caches stay as they are."""
        for layer in self._below:
            layer.forward = lambda *_, **__: hidden
        try:
            yield
        finally:
            for layer in self._below:
                del layer.forward  # the class's own again
