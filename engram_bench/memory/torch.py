"""The memory in torch: tables, gate and injection into any decoder transformers loads.

Two kinds of one shape: `EngramLayer`, the paper's gated n-gram memory, and `UnigramLayer`, the published single-token
proof of concept it is compared with. Both are fed token windows (see `prompts.ngram_windows`) before each forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from engram_bench.memory.addresses import slots
from engram_bench.memory.hashing import Int64Array, NgramHasher
from engram_bench.variants.configs import EngramConfig

EPS = 1e-6  # of the norms


class MemoryLayer(Protocol):
    """What one layer's memory is to the injector.

    `slots_for` turns windows into slots of the table on the host. The caller copies the slots of all layers to the
    device at once and hands them back by `set_slots`. The call adds what these slots hold to the hidden states.
    """

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def set_slots(self, slots: Tensor) -> None: ...
    def __call__(self, hidden: Tensor) -> Tensor: ...


@dataclass
class Forward:
    """The slots that one forward reads, and its gate. Kept apart, as setting an attribute of a module is slow."""

    slots: Tensor | None = None
    gate: Tensor | None = None


class EngramLayer(nn.Module):
    """Conditional memory of one layer (arXiv:2601.07372, section 2.3): h + gate * W_V e.

    The table is stored by touched rows only: `row_ids` are the rows some training n-gram hashes to, ascending, and all
    others are the zeros they started as; one row of zeros, the first, stands for them. So memory use follows the
    training data, whatever the table's nominal size.

    Args:
        config: the shape.
        layer: which layer this is.
        hasher: from `make_hasher`.
        row_ids: int64 [touched], sorted and unique.
        hidden_size: d of the backbone.
    """

    def __init__(
        self, config: EngramConfig, layer: int, hasher: NgramHasher, row_ids: Int64Array, hidden_size: int
    ) -> None:
        super().__init__()
        columns = len(config.orders) * config.heads
        self.layer, self.hasher = layer, hasher
        self.orders, self.order_dropout = len(config.orders), config.order_dropout
        self.row_ids = row_ids
        self.table = nn.Parameter(torch.zeros(1 + len(row_ids), config.width))
        self.key = nn.Linear(columns * config.width, hidden_size, bias=False)
        self.value = nn.Linear(columns * config.width, hidden_size, bias=False)
        self.key_norm = nn.RMSNorm(hidden_size, eps=EPS)
        self.query_norm = nn.RMSNorm(hidden_size, eps=EPS)
        self.scale = 1 / math.sqrt(hidden_size)
        self._fused: tuple[Tensor, Tensor] | None = None
        self._forward = Forward()

    @property
    def gate(self) -> Tensor | None:
        """[batch, tokens, 1], of the last forward; None where nothing was looked up."""
        return self._forward.gate

    @torch.no_grad()
    def fuse(self, dtype: torch.dtype) -> None:
        """Put what inference needs of the projections into one matrix in `dtype`; they must not change any more."""
        gain = self.key_norm.weight * self.query_norm.weight * self.scale
        self._fused = torch.cat([self.key.weight, self.value.weight]).to(dtype), gain

    @torch.no_grad()
    def hold(self, row_ids: Int64Array) -> None:
        """Hold these rows (sorted, unique) and no others; those it did not hold are zero."""
        table = self.table.new_zeros(1 + len(row_ids), self.table.shape[1])
        there = np.isin(row_ids, self.row_ids)
        kept = 1 + np.searchsorted(self.row_ids, row_ids[there])
        table[1:][torch.from_numpy(there)] = self.table[torch.from_numpy(kept).to(table.device)]
        self.row_ids, self.table = row_ids, nn.Parameter(table)

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the table keeps what the n-grams of a forward hash to, for `set_slots`.

        Args:
            ids: [batch, tokens] token ids.
            windows: [batch, tokens, N], see `prompts.ngram_windows`.

        Returns:
            int64 [batch, tokens, columns], see `addresses.slots`; of size 0 where nothing at all is found.
        """
        found = slots(self.hasher, self.layer, self.row_ids, windows)
        return found if found.any() else found[..., :0]

    def set_slots(self, slots: Tensor) -> None:
        """Fix what the next forward adds: what `slots_for` gave for it, on this layer's device."""
        self._forward.slots = slots if slots.numel() else None
        self._forward.gate = None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [batch, tokens, d] -> the same, with what was looked up added; itself where nothing was."""
        slots = self._forward.slots
        if slots is None:
            return hidden
        query = hidden.float()
        score, value = self._scored(self._looked_up(slots).to(hidden.device), query)
        gate = openness(score)
        self._forward.gate = gate.detach()
        return torch.addcmul(query, gate, value).to(hidden.dtype)

    def _looked_up(self, slots: Tensor) -> Tensor:
        """float32 [batch, tokens, columns * width]."""
        if self.training and self.order_dropout:
            slots = slots * self._kept(slots)
        # embedding, not indexing: its backward adds up rows in a fixed order, so training is repeatable
        return embedding(slots, self.table, padding_idx=0).flatten(-2)

    def _kept(self, slots: Tensor) -> Tensor:
        """bool like `slots` [..., columns]: drops whole orders of a token, so that no order is relied on alone."""
        kept = torch.rand((*slots.shape[:-1], self.orders), device=slots.device) >= self.order_dropout
        return kept.repeat_interleave(slots.shape[-1] // self.orders, dim=-1)

    def _scored(self, e: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Score [batch, tokens, 1] and value [batch, tokens, d], float32."""
        if self._fused is None or torch.is_grad_enabled():
            likeness = (self.key_norm(self.key(e)) * self.query_norm(query)).sum(-1, keepdim=True)
            return likeness * self.scale, self.value(e)
        both, gain = self._fused
        key, value = linear(e.to(both.dtype), both).float().chunk(2, dim=-1)
        squares = (key.square().mean(-1, keepdim=True) + EPS) * (query.square().mean(-1, keepdim=True) + EPS)
        return (key * query * gain).sum(-1, keepdim=True) * squares.rsqrt(), value


def openness(score: Tensor) -> Tensor:
    """How open a gate is, by the likeness of its key and query: the sigmoid of a root that keeps its sign."""
    return torch.sigmoid(score * score.abs().clamp_min(1e-6).rsqrt())


class UnigramLayer(nn.Module):
    """The EnhancedEngramModule of the engram-poc project, as published, to be measured as it is.

    A single-token hash ``id * multiplier mod slots`` with four multipliers and one modulus, mean over the heads, an MLP
    gate that starts at sigmoid(-5), a linear merge, added to a layer's output. Of the original, only the projections of
    its content-addressing option are left out: they are off by default and take no part in its results.

    Args:
        slots: rows of the table (published runs: 500).
        hidden_size: d of the backbone; a row is as wide.
    """

    MULTIPLIERS = (17, 31, 53, 79)

    def __init__(self, slots: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(slots, hidden_size).normal_(std=0.02))
        self.gate_in = nn.Linear(2 * hidden_size, hidden_size)
        self.gate_out = nn.Linear(hidden_size, 1)
        self.merge = nn.Linear(hidden_size, hidden_size)
        nn.init.constant_(self.gate_out.weight, 0.01)
        nn.init.constant_(self.gate_out.bias, -5.0)
        nn.init.normal_(self.merge.weight, std=0.01)
        nn.init.zeros_(self.merge.bias)
        self._slots: Tensor | None = None

    def cast_products(self, dtype: torch.dtype) -> None:
        """Cast the weights of all products once, where they train no more, rather than at each of them."""
        for product in (self.gate_in, self.gate_out, self.merge):
            product.to(dtype)

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of each token, int64 [batch, tokens, heads]; the token alone counts, a template's like any other."""
        rows: NDArray[np.int64] = ids[..., None] * np.array(self.MULTIPLIERS) % len(self.table)
        return rows

    def set_slots(self, slots: Tensor) -> None:
        """As `EngramLayer.set_slots`."""
        self._slots = slots

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [batch, tokens, d] -> the same plus the gated, merged mean of the token's rows."""
        assert self._slots is not None, "set_slots comes first"
        memory = embedding(self._slots, self.table).mean(dim=-2)
        with low_precision(hidden.device, hidden.dtype):
            gate_in = torch.cat([hidden.float(), memory], dim=-1)
            gate = torch.sigmoid(self.gate_out(torch.relu(self.gate_in(gate_in))))
            added: Tensor = self.merge(gate * memory).to(hidden.dtype)
        return hidden + added


def low_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Products of float32 weights in `dtype`; nothing where that is float32. Casts are not kept: weights train."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype, cache_enabled=False)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks, found by structure: the longest ModuleList whose members share one class.

    Raises:
        ValueError: the model has no such list.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of equal layers to attach a memory to")
    return max(lists, key=len)


@contextmanager
def injected(model: nn.Module, memories: Mapping[int, nn.Module], *, after: bool = False) -> Iterator[None]:
    """Run each memory on the input (or, `after`, the output) of its layer while the context lasts.

    Only hooks are used: no weight and no module of the model changes, so leaving restores it bit for bit.
    """
    layers = decoder_layers(model)
    handles = [_hook(layers[layer], memory, after) for layer, memory in memories.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: nn.Module, memory: nn.Module, after: bool) -> Any:
    def before_layer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (memory(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": memory(kwargs["hidden_states"])}

    def after_layer(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (memory(output[0]), *output[1:]) if isinstance(output, tuple) else memory(output)

    return (
        layer.register_forward_hook(after_layer)
        if after
        else layer.register_forward_pre_hook(before_layer, with_kwargs=True)
    )
