"""The reader of a hearing memory in torch: it attends to the rows that a token hears. See `memory.hearing`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import DynamicCache

from engram_bench.errors import UsageError
from engram_bench.memory.hearing import BEFORE, HEARD, NULL, WITHOUT, Facts, HeardRows, part_name
from engram_bench.memory.torch import Earlier, Forward, decoder_layers
from engram_bench.prompts import PromptEncoder


class LowRank(nn.Module):
    """A low-rank addition to a linear layer (arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs).uniform_(-1, 1) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], computed in the input's data type."""
        return linear(linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)) * self.scale


class Heard(nn.Module):
    """Attention to rows, merged with a layer's attention to the text.

    A head weighs the rows against each other and against the text as a whole, whose score is learned.

    Args:
        heads: of the layer's attention.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.full((heads,), NULL))

    def forward(self, own: Tensor, query: Tensor, keys: Tensor, values: Tensor, hears: Tensor) -> Tensor:
        """The layer's attention, with what is heard.

        Args:
            own: its attention to the text, [batch, tokens, heads * size].
            query: scaled, without positions, [batch, tokens, heads, size].
            keys, values: of the rows, [batch, rows, key heads, size]; heads is a multiple of key heads.
            hears: whether a token hears a row, bool [batch, tokens, rows].

        Returns:
            [batch, tokens, heads * size]; equal to `own` where nothing is heard.
        """
        batch, tokens, heads, size = query.shape
        groups = keys.shape[2]
        stacked = query.view(batch, tokens, groups, -1, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
        scores = (stacked @ keys.permute(0, 2, 3, 1)).float().view(batch, groups, -1, tokens, hears.shape[2])
        scores = scores.masked_fill(~hears[:, None, None], -torch.inf)
        null = self.null.view(1, groups, -1, 1, 1).expand(batch, -1, -1, tokens, 1)
        weights = torch.cat([scores, null], dim=-1).softmax(dim=-1).to(own.dtype)
        found = weights[..., :-1].flatten(2, 3) @ values.transpose(1, 2)
        found = found.view(batch, heads, tokens, size).transpose(1, 2)
        kept = weights[..., -1:].reshape(batch, heads, tokens, 1).transpose(1, 2)
        return torch.addcmul(found, kept, own.view(batch, tokens, heads, size)).flatten(2)


class Reader(HeardRows):
    """Attention to rows, and a LoRA on all linear layers of some decoder layers; a `memory.torch.MemoryLayer`.

    It acts on the tokens from the first name on.

    Args:
        model: the backbone.
        layers: numbers of the decoder layers.
        rank, alpha: of the LoRA.
        facts, encoder, reads: see `HeardRows`.

    Raises:
        UsageError: the layers' attention is of another shape.
    """

    taps, values = (), None  # it has no convolution

    def __init__(
        self,
        model: Any,
        layers: Sequence[int],
        rank: int,
        alpha: float,
        facts: Facts,
        encoder: PromptEncoder,
        *,
        reads: bool,
    ) -> None:
        self._model, self.layers = model, list(layers)
        self.parts = nn.ModuleDict()
        for layer in self.layers:
            for name, product in _products(decoder_layers(model)[layer]):
                outputs, inputs = product.weight.shape if isinstance(product, nn.Linear) else product.weight.T.shape
                self.parts[part_name(layer, name)] = LowRank(inputs, outputs, rank, alpha / rank)
            if reads:
                attention = _attention(decoder_layers(model)[layer])
                self.parts[part_name(layer, HEARD)] = Heard(attention.q_proj.out_features // attention.head_dim)
        self.parts.to(model.device)
        self._forward, self._queries = Forward(), dict[int, Tensor]()
        shape = [0, 0]
        if reads:
            attention = _attention(decoder_layers(model)[layers[0]])
            shape = [attention.k_proj.out_features // attention.head_dim, attention.head_dim]
        # Keys and values of each row: [rows, layers, 2, key heads, size].
        self._table = torch.zeros(1, len(self.layers), 2, *shape, dtype=model.dtype, device=model.device)
        super().__init__(facts, encoder, row_bytes=self._table[0].nbytes)

    def set_slots(self, slots: Tensor, earlier: Earlier | None = None) -> None:
        """Set what the next forward reads: the result of `slots_for`, on the model's device."""
        self._forward.slots = slots if slots.numel() else None

    def __call__(self, hidden: Tensor) -> Tensor:
        raise AssertionError("a reader acts within the layers; see `on`")

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Act on the model inside the context, by hooks."""
        handles = []
        for at, layer in enumerate(self.layers):
            for name, product in _products(decoder_layers(model)[layer]):
                handles.append(product.register_forward_hook(self._adapted(self.parts[part_name(layer, name)])))
            if (heard := part_name(layer, HEARD)) in self.parts:
                attention = _attention(decoder_layers(model)[layer])
                handles.append(attention.q_proj.register_forward_hook(self._catch(at)))
                handles.append(
                    _output(attention).register_forward_pre_hook(self._merge(at, attention, self.parts[heard]))
                )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _adapted(self, part: nn.Module) -> Callable[..., Any]:
        def after(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            slots = self._forward.slots
            return None if slots is None else output + slots[..., :1].to(output.dtype) * part(args[0])

        return after

    def _catch(self, at: int) -> Callable[..., Any]:
        def after(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self._forward.slots is not None:
                self._queries[at] = output

        return after

    def _merge(self, at: int, attention: Any, part: nn.Module) -> Callable[..., Any]:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            slots = self._forward.slots
            if slots is None or slots.shape[-1] == 1:
                return None
            query = self._queries.pop(at)
            query = query.view(*query.shape[:2], -1, attention.head_dim)
            if (norm := getattr(attention, "q_norm", None)) is not None:
                query = norm(query)
            keys, values = self._table[slots[..., 1:].amax(1), at].unbind(2)
            return (part(args[0], query * attention.scaling, keys, values, slots[..., 1:] > 0),)

        return before

    def _make_room(self, rows: int) -> None:
        if len(self._table) < rows:
            with torch.inference_mode(False):
                old, self._table = self._table, self._table.new_empty(2 * rows, *self._table.shape[1:])
                self._table[: len(old)] = old

    def _compute(self, statements: Sequence[tuple[int, ...]], at: int) -> None:
        """See `HeardRows`. A statement stands just before the text: its tokens have negative positions."""
        start, device = (self._encoder.eos_id,), self._model.device
        most = 1 + max(map(len, statements))
        ids = torch.tensor([(start * (most - len(tokens))) + tokens for tokens in statements], device=device)
        places = torch.arange(-most, 0, device=device)
        mask = torch.stack([(places >= -1 - len(tokens)).long() for tokens in statements])
        self.set_slots(torch.empty(0))
        cache = DynamicCache()
        with torch.inference_mode(False), torch.no_grad(), _whole(self._model):
            self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(places + 1 - BEFORE).expand_as(ids),
                past_key_values=cache,
                logits_to_keep=1,
            )
            read = torch.stack([torch.stack([cache.layers[n].keys, cache.layers[n].values]) for n in self.layers])
            for row, tokens in enumerate(statements):
                self._table[at : at + len(tokens)] = read[:, :, row, :, -len(tokens) :].permute(3, 0, 1, 2, 4)
                at += len(tokens)


def _products(layer: nn.Module) -> list[tuple[str, Any]]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    return [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _attention(layer: nn.Module) -> Any:
    """The attention of a decoder layer."""
    for module in layer.modules():
        if all(hasattr(module, part) for part in ("q_proj", "k_proj", "head_dim", "scaling")) and _output(module):
            return module
    raise UsageError(WITHOUT)


def _output(attention: Any) -> Any:
    """The linear layer after attention; `dense` in Phi."""
    return getattr(attention, "o_proj", None) or getattr(attention, "dense", None)


@contextmanager
def _whole(model: nn.Module) -> Iterator[None]:
    """Inside the context, all layers run, also where a training step skips the lower ones (see `FrozenParts`)."""
    skipped = {layer: layer.__dict__.pop("forward") for layer in decoder_layers(model) if "forward" in layer.__dict__}
    try:
        yield
    finally:
        for layer, forward in skipped.items():
            layer.forward = forward
