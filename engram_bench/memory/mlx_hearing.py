"""The reader of a hearing memory in MLX, with the same parameters and names as `memory.torch_hearing`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from numpy.typing import NDArray

from engram_bench.errors import UsageError
from engram_bench.memory.hearing import BEFORE, HEARD, NULL, WITHOUT, Facts, HeardRows, part_name
from engram_bench.prompts import PromptEncoder

PARTS = ("q_proj", "k_proj", "n_heads", "n_kv_heads", "scale")  # of a layer's attention


class LowRank(nn.Module):  # type: ignore[misc]
    """A low-rank addition to a linear layer (arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = mx.random.uniform(-1, 1, (rank, inputs)) / math.sqrt(inputs)
        self.up = mx.zeros((outputs, rank))
        self._scale = scale  # MLX does not treat names with a leading underscore as parameters

    def __call__(self, x: mx.array) -> mx.array:
        """[..., inputs] -> [..., outputs], computed in the input's data type."""
        return (x @ self.down.astype(x.dtype).T) @ self.up.astype(x.dtype).T * self._scale


class Heard(nn.Module):  # type: ignore[misc]
    """Attention to rows, merged with a layer's attention to the text; see `memory.torch_hearing.Heard`."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.null = mx.full((heads,), NULL)

    def __call__(self, own: mx.array, query: mx.array, keys: mx.array, values: mx.array, hears: mx.array) -> mx.array:
        """See `memory.torch_hearing.Heard.forward`."""
        batch, tokens, heads, size = query.shape
        groups, rows = keys.shape[2], keys.shape[1]
        stacked = query.reshape(batch, tokens, groups, -1, size).transpose(0, 2, 3, 1, 4)
        stacked = stacked.reshape(batch, groups, -1, size)
        scores = (stacked @ keys.transpose(0, 2, 3, 1)).astype(mx.float32).reshape(batch, groups, -1, tokens, rows)
        scores = mx.where(hears[:, None, None], scores, -mx.inf)
        null = mx.broadcast_to(self.null.reshape(1, groups, -1, 1, 1), (*scores.shape[:-1], 1))
        weights = mx.softmax(mx.concatenate([scores, null], axis=-1), axis=-1).astype(own.dtype)
        found = weights[..., :-1].reshape(batch, groups, -1, rows) @ values.transpose(0, 2, 1, 3)
        found = found.reshape(batch, heads, tokens, size).transpose(0, 2, 1, 3)
        kept = weights[..., -1:].reshape(batch, heads, tokens, 1).transpose(0, 2, 1, 3)
        return (found + kept * own.reshape(batch, tokens, heads, size)).reshape(batch, tokens, -1)


class Reader(HeardRows):
    """Attention to rows, and a LoRA on all linear layers of some decoder layers; a `memory.mlx.MemoryLayer`.

    Args: see `memory.torch_hearing.Reader`.
    """

    taps, values = (), None  # it has no convolution

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int],
        rank: int,
        alpha: float,
        facts: Facts,
        encoder: PromptEncoder,
        *,
        reads: bool,
    ) -> None:
        self._model, self.layers = model, list(layers)
        self.parts = nn.Module()
        for layer in self.layers:
            for name, product in _products(model.layers[layer]):
                outputs, inputs = product.weight.shape
                if isinstance(product, nn.QuantizedLinear):  # whose weights are packed
                    inputs = inputs * 32 // product.bits
                self.parts[part_name(layer, name)] = LowRank(inputs, outputs, rank, alpha / rank)
            if reads:
                self.parts[part_name(layer, HEARD)] = Heard(_attention(model.layers[layer]).n_heads)
        self._attentions = {layer: _attention(model.layers[layer]) for layer in self.layers} if reads else {}
        shape = [0, 0]
        if reads:
            attention = self._attentions[layers[0]]
            shape = [attention.n_kv_heads, attention.k_proj.weight.shape[0] // attention.n_kv_heads]
        self._table = mx.zeros((1, len(self.layers), 2, *shape))  # as in torch, in float32
        super().__init__(facts, encoder, row_bytes=self._table[0].nbytes)
        self._slots: mx.array | None = None
        self._queries: dict[int, mx.array] = {}

    def set_slots(self, slots: NDArray[np.int64], earlier: mx.array | None = None) -> None:
        """Set what the next forward reads: the result of `slots_for`."""
        self._slots = mx.array(slots) if slots.size else None

    def __call__(self, hidden: mx.array) -> mx.array:
        raise AssertionError("a reader acts within the layers; see `on`")

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Act on the model's products inside the context. Only the classes of these objects change."""
        products = [(layer, name, product) for layer in self.layers for name, product in _products(model.layers[layer])]
        classes = [type(product) for *_, product in products]
        for (layer, name, product), cls in zip(products, classes, strict=True):
            product.__class__ = self._adapted(cls, layer, name)
        try:
            yield
        finally:
            for (*_, product), cls in zip(products, classes, strict=True):
                product.__class__ = cls

    def _adapted(self, cls: Any, layer: int, name: str) -> type:
        reader, part, last = self, self.parts[part_name(layer, name)], name.rpartition(".")[2]

        class Adapted(cls):  # type: ignore[misc]
            def __call__(self, x: mx.array) -> mx.array:
                slots = reader._slots
                if slots is None:
                    return super().__call__(x)
                if last in ("o_proj", "dense") and slots.shape[-1] > 1:
                    x = reader._merged(layer, x, slots[..., 1:])
                output = super().__call__(x)
                output = output + slots[..., :1].astype(output.dtype) * part(x)
                if last == "q_proj":
                    reader._queries[layer] = output
                return output

        return Adapted

    def _merged(self, layer: int, own: mx.array, slots: mx.array) -> mx.array:
        attention = self._attentions[layer]
        query = self._queries.pop(layer)
        query = query.reshape(*query.shape[:2], attention.n_heads, -1)
        if (norm := getattr(attention, "q_norm", None)) is not None:
            query = norm(query)
        rows = self._table[slots.max(axis=1), self.layers.index(layer)].astype(own.dtype)
        part = self.parts[part_name(layer, HEARD)]
        return part(own, query * attention.scale, rows[:, :, 0], rows[:, :, 1], slots > 0)

    def _make_room(self, rows: int) -> None:
        if len(self._table) < rows:
            old, self._table = self._table, mx.zeros((2 * rows, *self._table.shape[1:]))
            self._table[: len(old)] = old

    def _compute(self, statements: Sequence[tuple[int, ...]], at: int) -> None:
        """See `HeardRows`. A statement stands just before the text: its keys are turned to negative positions."""
        self.set_slots(np.empty(0, np.int64))
        for tokens in statements:
            cache = make_prompt_cache(self._model)
            self._model(mx.array([[self._encoder.eos_id, *tokens]]), cache=cache)
            read = []
            for layer in self.layers:
                keys, values = (kept[0, :, 1 : 1 + len(tokens)] for kept in (cache[layer].keys, cache[layer].values))
                if (rope := getattr(self._attentions[layer], "rope", None)) is not None:
                    turned = rope(keys.reshape(-1, 1, 1, keys.shape[-1]), offset=-len(tokens) - BEFORE)
                    keys = turned.reshape(keys.shape)
                read.append(mx.stack([keys, values]))
            self._table[at : at + len(tokens)] = mx.stack(read).transpose(3, 0, 1, 2, 4)
            at += len(tokens)
        mx.eval(self._table)


def _products(layer: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear | nn.QuantizedLinear)
    ]


def _attention(layer: nn.Module) -> Any:
    """The attention of a decoder layer."""
    for module in layer.modules():
        if all(part in module or hasattr(module, part) for part in PARTS):
            return module
    raise UsageError(WITHOUT)
