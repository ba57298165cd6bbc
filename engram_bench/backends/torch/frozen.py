"""What training a memory never changes, computed once an example.

Below the first layer that carries a memory, one epoch is like another. Above it so are the tokens before the first that
the memory acts on, as a causal model's tokens see nothing of what follows them. So an example is read once, and a step
runs the upper layers alone, over the answer's tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_bench.backends.torch.layout import answer_places, ends, padded
from engram_bench.backends.torch.network import Network, Prefix
from engram_bench.backends.torch.prefill import read
from engram_bench.memory.torch import decoder_layers
from engram_bench.prompts import Pair

MOST_BYTES = 2 << 30  # kept in all; examples beyond it are read anew every time


class Kept(NamedTuple):
    """What is known of an example, less the tokens that all examples share.

    Attributes:
        states: keys and values of the tokens that nothing acts on, in the upper layers: [layers, 2, heads, tokens,
            size].
        hidden: what enters the first of these layers at the tokens after those, [tokens, d].
        windows: the n-grams that those see, int64 [tokens, N].
    """

    states: Tensor
    hidden: Tensor
    windows: NDArray[np.int64]


class FrozenParts:
    """Examples as a model with a memory attached sees them, read no further than to where the memory acts.

    What is kept is what would be computed again, up to the rounding of another batch's shape.

    Args:
        model: the backend.
        first: the lowest layer that trains, or reads what trains.
        on_text: whether the user's text is acted on, and not just the prompt's last token and the answer.
        state: keys and values of the tokens that all examples share.
        prefix: how many these are.
        pairs: the examples to come.
    """

    def __init__(
        self, model: Network, first: int, on_text: bool, state: Prefix, prefix: int, pairs: Sequence[Pair]
    ) -> None:
        self._model, self._first, self._state, self._prefix = model, first, state, prefix
        self._whole = on_text or not model.takes_any_layout(max(len(_read_of(pair)) for pair in pairs))
        self._layers = list(decoder_layers(model.model))
        self._known: dict[Pair, Kept] = {}
        size = 0
        for pair, kept in self._read(pairs):
            self._known[pair] = kept
            size += kept.states.nbytes + kept.hidden.nbytes
            if size > MOST_BYTES:
                break

    def answer_logits(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """See `Network.answer_logits`."""
        kept = self._kept(pairs)
        before, after = [one.states.shape[-2] for one in kept], [len(one.hidden) for one in kept]
        cache = self._model.cache(self._state, len(pairs))
        if any(before):
            states = _stacked([one.states for one in kept]).movedim(0, 2)
            for layer, (keys, values) in enumerate(states, self._first):
                cache.update(keys, values, layer)
        own = [_read_of(pair)[-count:] for pair, count in zip(pairs, after, strict=True)]
        rows = padded(own, [one.windows for one in kept], self._model.encoder.eos_id)
        positions = (self._prefix + np.array(before)[:, None] + rows.mask.cumsum(axis=1) - 1).clip(min=0)
        mask = np.concatenate([np.ones((len(pairs), self._prefix), np.int64), ends(before), rows.mask], axis=1)
        if any(before):  # padding in the middle: each token is told what it sees
            mask = mask[:, None] * np.tri(max(after), mask.shape[1], mask.shape[1] - max(after), dtype=np.int64)
        places, tokens = answer_places(pairs)
        with self._entered(_stacked([one.hidden for one in kept])):
            logits = self._model.step(rows.ids, mask, positions, rows.windows, cache, places.shape[1], places)
        return logits, torch.from_numpy(tokens).to(logits.device)

    def _kept(self, pairs: Sequence[Pair]) -> list[Kept]:
        unknown = [pair for pair in pairs if pair not in self._known]
        anew = dict(self._read(unknown))
        return [anew[pair] if pair in anew else self._known[pair] for pair in pairs]

    @torch.no_grad()
    def _read(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Kept]]:
        if not pairs:
            return
        texts = [_read_of(pair)[self._prefix :] for pair in pairs]
        windows = [self._model.windows(prompt, answer[:-1])[self._prefix :] for prompt, answer in pairs]
        with self._entering() as entering:
            for piece in read(self._model, texts, windows, self._state, self._prefix):
                upper = [torch.stack([layer.keys, layer.values]) for layer in piece.cache.layers[self._first :]]
                states, hidden = torch.stack(upper), entering.pop()
                inside = states.shape[-2] - hidden.shape[-2]
                for i, row, path in zip(piece.which, piece.rows, piece.paths, strict=True):
                    still = len(path) - self._acted_on(pairs[i])
                    at = torch.from_numpy(path).to(hidden.device)
                    before = states[:, :, row, :, inside + at[:still]]
                    yield pairs[i], Kept(before, hidden[row, at[still:]], windows[i][still:])

    def _acted_on(self, pair: Pair) -> int:
        """How many tokens at an example's end each step runs again: the last of the prompt and the answer's but its
        last, or all after the shared ones where the memory acts on the text or the model takes padded rows alone."""
        own = len(pair[0].ids) + len(pair[1]) - 1 - self._prefix
        return own if self._whole else len(pair[1])

    @contextmanager
    def _entering(self) -> Iterator[list[Tensor]]:
        """While it lasts, what enters the first upper layer in each forward is added to a list."""
        entering: list[Tensor] = []
        handle = self._layers[self._first].register_forward_pre_hook(
            lambda _, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
            prepend=True,  # before a memory adds to it
        )
        try:
            yield entering
        finally:
            handle.remove()

    @contextmanager
    def _entered(self, hidden: Tensor) -> Iterator[None]:
        """While it lasts, the layers below hand `hidden` up and do nothing else; their caches stay as they are."""
        below = self._layers[: self._first]
        for layer in below:
            layer.forward = lambda *_, **__: hidden
        try:
            yield
        finally:
            for layer in below:
                del layer.forward  # the class's own again


def _read_of(pair: Pair) -> tuple[int, ...]:
    """An example's tokens but the last, which is never read."""
    prompt, answer = pair
    return (*prompt.ids, *answer[:-1])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Parts [..., tokens, size], padded on the left: [parts, ..., most tokens, size]."""
    most = max(part.shape[-2] for part in parts)
    stacked = parts[0].new_zeros(len(parts), *parts[0].shape[:-2], most, parts[0].shape[-1])
    for row, part in zip(stacked, parts, strict=True):
        row[..., most - part.shape[-2] :, :] = part
    return stacked
