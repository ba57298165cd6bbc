"""Hidden states that training a memory never changes, computed once per example.

Below the first memory layer, hidden states are the same in every epoch. In the layers above, so are the states of all
tokens before the first one that the memory acts on, because a causal model's tokens do not see later ones. So each
example is read once, and a training step runs only the upper layers on the remaining tokens. If the memory acts on the
tokens that all examples share, a step runs the upper layers on these once, too.

An adapter that acts on the template, such as a LoRA, acts on all tokens. Its texts stand one after the other in a row,
so that few positions are padding, and examples and replay texts are one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_bench.backends.torch.adapters import TorchAdapter
from engram_bench.backends.torch.layout import answer_places, ends, packed, padded
from engram_bench.backends.torch.network import Network, Prefix
from engram_bench.backends.torch.prefill import read
from engram_bench.memory.torch import decoder_layers
from engram_bench.prompts import ABSENT, Pair

PACKED_TOKENS = 192  # in a row of several texts; the cost of attention is quadratic, mostly for masked pairs
MOST_BYTES = 2 << 30  # of cached states in total; examples beyond this are read again in every step


class Kept(NamedTuple):
    """Cached states of one example, without the prefix that all examples share.

    Attributes:
        states: keys and values in the upper layers, of the tokens before the first one that the memory acts on:
            [layers, 2, heads, tokens, size].
        hidden: input of the first upper layer at the remaining tokens, [tokens, d].
        windows: n-gram windows of the remaining tokens, int64 [tokens, N + 1].
    """

    states: Tensor
    hidden: Tensor
    windows: NDArray[np.int64]


def packs(model: Network, pairs: Sequence[Pair]) -> bool:
    """Whether a row may hold several of these texts. On an accelerator this has not been measured."""
    return model.device == "cpu" and model.takes_any_layout(max(len(_input_ids(pair)) for pair in pairs))


class FrozenParts:
    """Computes the answer logits of training examples from their cached states, with a memory attached.

    Cached states equal recomputed ones, except for rounding that depends on the batch shape.

    Args:
        model: the backend.
        adapter: the attached memory.
        first: the lowest layer that trains, or that depends on trained parameters.
        prefix: number of tokens that all examples share.
        pairs: the training examples, and the replay texts.

    Attributes:
        packs: whether rows hold several texts, so that one pass may take texts of any lengths.
    """

    def __init__(self, model: Network, adapter: TorchAdapter, first: int, prefix: int, pairs: Sequence[Pair]) -> None:
        self._model, self._first, self._prefix, self._any = model, first, prefix, pairs[0][0]
        longest = max(len(_input_ids(pair)) for pair in pairs)
        convolves = any(memory.taps for memory in adapter.memories())  # and reads the values of earlier tokens
        self._whole = adapter.acts_on_template or convolves or not model.takes_any_layout(longest)
        self.packs = adapter.acts_on_template and packs(model, pairs)
        self._layers = list(decoder_layers(model.model))
        with torch.no_grad(), self._recorded_inputs() as inputs:
            self._fixed = model.prefix_state(self._any, prefix)
        self._shared = inputs[0] if inputs and adapter.acts_on_template else None  # input of the first upper layer
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
        if self.packs:
            return self._packed_logits(pairs, kept)
        before, after = [one.states.shape[-2] for one in kept], [len(one.hidden) for one in kept]
        cache = self._model.cache(self._state(), len(pairs))
        if any(before):
            states = _stacked([one.states for one in kept]).movedim(0, 2)
            for layer, (keys, values) in enumerate(states, self._first):
                cache.update(keys, values, layer)
        own = [_input_ids(pair)[-count:] for pair, count in zip(pairs, after, strict=True)]
        rows = padded(own, [one.windows for one in kept], self._model.encoder.eos_id)
        positions = (self._prefix + np.array(before)[:, None] + rows.mask.cumsum(axis=1) - 1).clip(min=0)
        mask = np.concatenate([np.ones((len(pairs), self._prefix), np.int64), ends(before), rows.mask], axis=1)
        if any(before):  # padding in the middle of rows: needs a mask per token
            mask = mask[:, None] * np.tri(max(after), mask.shape[1], mask.shape[1] - max(after), dtype=np.int64)
        places, tokens = answer_places(pairs)
        with self._skipped(self._layers[: self._first], _stacked([one.hidden for one in kept])):
            logits = self._model.step(rows.ids, mask, positions, rows.windows, cache, places.shape[1], places)
        return logits, torch.from_numpy(tokens).to(logits.device)

    def _packed_logits(self, pairs: Sequence[Pair], kept: Sequence[Kept]) -> tuple[Tensor, Tensor]:
        texts = [(len(one.hidden), len(answer)) for one, (_, answer) in zip(kept, pairs, strict=True)]
        rows = packed(texts, self._prefix, PACKED_TOKENS)
        shape = rows.positions.shape
        own = torch.cat([one.hidden for one in kept])
        hidden = own.new_zeros(rows.positions.size, own.shape[-1])
        hidden[torch.from_numpy(rows.at)] = own
        ids = np.full(rows.positions.size, self._model.encoder.eos_id, dtype=np.int64)
        windows = np.full((ids.size, kept[0].windows.shape[-1]), ABSENT, dtype=np.int64)
        ids[rows.at] = [token for pair in pairs for token in _input_ids(pair)[self._prefix :]]
        windows[rows.at] = np.concatenate([one.windows for one in kept])
        cache = self._model.cache(self._state(), len(rows.positions))
        with self._skipped(self._layers[: self._first], hidden.view(*shape, -1)):
            logits = self._model.step(
                ids.reshape(shape),
                rows.sees,
                rows.positions,
                windows.reshape(*shape, -1),
                cache,
                shape[1],
                rows.places,
            )
        return logits, torch.tensor([token for _, answer in pairs for token in answer])

    def _state(self) -> Prefix:
        """Keys and values of the tokens that all examples share."""
        if self._shared is None:
            return self._fixed
        with self._skipped(self._layers[: self._first], self._shared):
            return [*self._fixed[: self._first], *self._model.prefix_state(self._any, self._prefix)[self._first :]]

    def _kept(self, pairs: Sequence[Pair]) -> list[Kept]:
        unknown = [pair for pair in pairs if pair not in self._known]
        fresh = dict(self._read(unknown))
        return [fresh[pair] if pair in fresh else self._known[pair] for pair in pairs]

    @torch.no_grad()
    def _read(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Kept]]:
        if not pairs:
            return
        texts = [_input_ids(pair)[self._prefix :] for pair in pairs]
        windows = [self._model.windows(prompt, answer[:-1])[self._prefix :] for prompt, answer in pairs]
        nothing = [np.full_like(window, ABSENT) for window in windows]  # so the memory rests: no kept state needs it
        upper = self._skipped(self._layers[self._first :]) if self._whole else nullcontext()
        with self._recorded_inputs() as inputs, upper:
            for piece in read(self._model, texts, nothing, self._fixed, self._prefix):
                hidden = inputs.pop()
                states = hidden.new_empty(0, 2, len(hidden), 0, *hidden.shape[1:])
                if not self._whole:
                    above = piece.cache.layers[self._first : len(self._layers)]
                    states = torch.stack([torch.stack([layer.keys, layer.values]) for layer in above])
                inside = states.shape[-2] - hidden.shape[-2]
                for i, row, path in zip(piece.which, piece.rows, piece.paths, strict=True):
                    still = 0 if self._whole else _still(windows[i], len(pairs[i][1]))
                    at = torch.from_numpy(path).to(hidden.device)
                    before = states[:, :, row, :, inside + at[:still]]
                    yield pairs[i], Kept(before, hidden[row, at[still:]], windows[i][still:])

    @contextmanager
    def _recorded_inputs(self) -> Iterator[list[Tensor]]:
        """Inside the context, append the input of the first upper layer to a list at each forward pass."""
        inputs: list[Tensor] = []
        handle = self._layers[self._first].register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
            prepend=True,  # runs before the memory's own hook
        )
        try:
            yield inputs
        finally:
            handle.remove()

    @contextmanager
    def _skipped(self, layers: Sequence[Any], output: Tensor | None = None) -> Iterator[None]:
        """Inside the context, these layers only return `output`, or their input; their caches stay unchanged."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if output is not None:
                return output
            return args[0] if args else kwargs["hidden_states"]

        for layer in layers:
            layer.forward = forward
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # restores the class's method


def _still(windows: NDArray[np.int64], answer: int) -> int:
    """Number of a text's tokens, [tokens, N + 1], before the first one that the memory acts on.

    At the latest, this is the prompt's last token, which predicts the first of the `answer` tokens.
    """
    acts = windows[:, 0] != ABSENT
    last = len(windows) - answer
    return min(int(acts.argmax()), last) if acts.any() else last


def _input_ids(pair: Pair) -> tuple[int, ...]:
    """An example's input tokens: all but the last, which is only predicted."""
    prompt, answer = pair
    return (*prompt.ids, *answer[:-1])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors [..., tokens, size], left-padded to the longest: [parts, ..., most tokens, size]."""
    most = max(part.shape[-2] for part in parts)
    stacked = parts[0].new_zeros(len(parts), *parts[0].shape[:-2], most, parts[0].shape[-1])
    for row, part in zip(stacked, parts, strict=True):
        row[..., most - part.shape[-2] :, :] = part
    return stacked
