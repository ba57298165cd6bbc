"""The memory in torch: tables, gate, and injection into any decoder that transformers loads.

`PaperEngram` is the published module by itself, see `memory.paper`. Two kinds of layer share an interface:
`EngramLayer`, the same memory with this project's options, and `UnigramLayer`, a published single-token proof of
concept for comparison. Both get n-gram windows (see `prompts.ngram_windows`) before each forward.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, silu

from engram_bench.memory.addresses import slots
from engram_bench.memory.hashing import Int64Array, NgramHasher
from engram_bench.memory.paper import CONV_EPS
from engram_bench.memory.paper import PaperEngram as PaperEngram
from engram_bench.prompts import ABSENT
from engram_bench.variants.configs import EngramConfig

EPS = 1e-6  # of the norms of key and query


class MemoryLayer(Protocol):
    """The memory of one layer, as the injector sees it.

    `slots_for` turns windows into slots, which are positions in the stored table, on the host. The caller copies the
    slots of all layers to the device at once and passes them to `set_slots`. Calling the memory adds their contents to
    the hidden states.

    A memory with a convolution has `taps`, see `EngramConfig.taps`, and reads what it computed for earlier tokens. The
    caller keeps these values beside the tokens' keys and values in the KV cache, so that they belong to the call, and
    passes them in as `earlier`.
    """

    @property
    def taps(self) -> Sequence[int]: ...
    @property
    def values(self) -> Tensor | None: ...
    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def set_slots(self, slots: Tensor, earlier: Earlier | None = None) -> None: ...
    def __call__(self, hidden: Tensor) -> Tensor: ...


class Earlier(NamedTuple):
    """The values that a convolution reads in one forward pass.

    Attributes:
        values: float32 [n, d], values of tokens that earlier forwards read.
        at: int64 [batch, tokens, taps], for each token, the places of those it reads: 0 for none, then those in
            `values`, then the new tokens, row by row.
    """

    values: Tensor
    at: Tensor


class Forward(threading.local):
    """What belongs to one forward pass. Each thread has its own, so threads may share a model.

    Kept outside the module, where setting an attribute is slow.
    """

    slots: Tensor | None = None
    gate: Tensor | None = None
    earlier: Earlier | None = None
    values: Tensor | None = None


class EngramLayer(nn.Module):
    """Conditional memory of one layer (arXiv:2601.07372, section 2.3): h + v + SiLU(conv(RMSNorm(v))).

    v is gate * (W_V e + b_V). The convolution, the bias and the gate are options. A token that reads no n-gram has
    v = 0, and nothing is added to its hidden state.

    The table stores only the rows that training n-grams hash to: `row_ids`, ascending. All other rows keep their
    initial zeros, and the stored table's row 0 stands for all of them. So memory use depends on the training data, not
    on the table's nominal size.

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
        width = config.hashes * config.heads * config.width
        self.layer, self.hasher = layer, hasher
        self.hashes, self.order_dropout = config.hashes, config.order_dropout
        self.gated, self.without_rows, self.taps = config.gate, config.acts_without_rows, config.taps
        self.row_ids = row_ids
        self.table = nn.Parameter(torch.zeros(1 + len(row_ids), config.width))
        if config.gate:
            self.key = nn.Linear(width, hidden_size, bias=config.bias)
        self.value = nn.Linear(width, hidden_size, bias=config.bias)
        if config.bias:  # so that training starts from the untouched model
            for product in (self.key, self.value) if config.gate else (self.value,):
                nn.init.zeros_(product.bias)
        if config.gate:
            self.key_norm = nn.RMSNorm(hidden_size, eps=EPS)
            self.query_norm = nn.RMSNorm(hidden_size, eps=EPS)
        if config.kernel:
            self.conv_norm = nn.RMSNorm(hidden_size, eps=CONV_EPS)
            self.conv = nn.Parameter(torch.zeros(config.kernel, hidden_size))  # the last row meets the token itself
        self.scale = 1 / math.sqrt(hidden_size)
        self._fused: tuple[Tensor, Tensor] | None = None
        self._forward = Forward()

    @property
    def gate(self) -> Tensor | None:
        """[batch, tokens, 1], of the last forward; None if it found no n-gram, or has no gate."""
        return self._forward.gate

    @property
    def values(self) -> Tensor | None:
        """What the convolution of later tokens reads: v of the last forward, [batch, tokens, d]; None: all zero."""
        return self._forward.values

    @torch.no_grad()
    def fuse(self, dtype: torch.dtype) -> None:
        """Merge the projections into one matrix in `dtype` for inference; they must not change afterwards."""
        if self.gated:
            gain = self.key_norm.weight * self.query_norm.weight * self.scale
            self._fused = torch.cat([self.key.weight, self.value.weight]).to(dtype), gain

    @torch.no_grad()
    def hold(self, row_ids: Int64Array) -> None:
        """Store exactly these rows (sorted, unique); new rows start at zero."""
        table = self.table.new_zeros(1 + len(row_ids), self.table.shape[1])
        stored = np.isin(row_ids, self.row_ids)
        kept = 1 + np.searchsorted(self.row_ids, row_ids[stored])
        table[1:][torch.from_numpy(stored)] = self.table[torch.from_numpy(kept).to(table.device)]
        self.row_ids, self.table = row_ids, nn.Parameter(table)

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the n-grams' rows in the stored table, for `set_slots`.

        Args:
            ids: [batch, tokens] token ids.
            windows: [batch, tokens, N + 1], see `prompts.ngram_windows`.

        Returns:
            int64 [batch, tokens, columns], see `addresses.slots`; of size 0 if it will change nothing. A memory that
            acts without rows, too, has one column more: whether the token reads an n-gram.
        """
        found = slots(self.hasher, self.layer, self.row_ids, windows)
        if self.without_rows:
            found = np.concatenate([found, windows[..., :1] != ABSENT], axis=-1)
        return found if found.any() else found[..., :0]

    def set_slots(self, slots: Tensor, earlier: Earlier | None = None) -> None:
        """Set what the next forward reads: the result of `slots_for`, on this layer's device, and earlier values."""
        self._forward.slots = slots if slots.numel() else None
        self._forward.earlier = earlier
        self._forward.gate = self._forward.values = None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [batch, tokens, d] -> the same, with the memory's output added; unchanged if it found no n-gram."""
        slots = self._forward.slots
        if slots is None:
            return hidden
        query = hidden.float()
        reads = None
        if self.without_rows:
            slots, reads = slots[..., :-1], slots[..., -1:].to(hidden.device)
        gate, value = self._gated(self._looked_up(slots).to(hidden.device), query)
        if self.gated:
            self._forward.gate = gate.detach()
        if reads is None:
            return torch.addcmul(query, gate, value).to(hidden.dtype)
        value = reads * gate * value
        if self.taps:
            self._forward.values = value
            return (query + value + reads * silu(self._convolved(value))).to(hidden.dtype)
        return (query + value).to(hidden.dtype)

    def _convolved(self, value: Tensor) -> Tensor:
        """The short convolution over each token and those before it: [batch, tokens, d] -> the same shape."""
        earlier = self._forward.earlier
        assert earlier is not None, "a convolution needs the earlier tokens' values"
        every = torch.cat([value.new_zeros(1, value.shape[-1]), earlier.values, value.flatten(0, 1)])
        taps = embedding(earlier.at, self.conv_norm(every), padding_idx=0)  # instead of indexing, see `_looked_up`
        own: Tensor = self.conv_norm(value) * self.conv[-1]
        return own + (taps * self.conv[:-1]).sum(-2)

    def _looked_up(self, slots: Tensor) -> Tensor:
        """Read the table rows: float32 [batch, tokens, columns * width]."""
        if self.training and self.order_dropout:
            slots = slots * self._kept(slots)
        # embedding instead of indexing, because its backward sums rows in a fixed order: training is repeatable
        return embedding(slots, self.table, padding_idx=0).flatten(-2)

    def _kept(self, slots: Tensor) -> Tensor:
        """Dropout mask, bool [..., columns]: drops whole orders of a token, so that none becomes indispensable."""
        kept = torch.rand((*slots.shape[:-1], self.hashes), device=slots.device) >= self.order_dropout
        return kept.repeat_interleave(slots.shape[-1] // self.hashes, dim=-1)

    def _gated(self, e: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Gate [batch, tokens, 1], and value before it [batch, tokens, d], float32."""
        if not self.gated:
            return query.new_ones(1), self.value(e)
        if self._fused is None or torch.is_grad_enabled():
            similarity = (self.key_norm(self.key(e)) * self.query_norm(query)).sum(-1, keepdim=True)
            return openness(similarity * self.scale), self.value(e)
        both, gain = self._fused
        key, value = linear(e.to(both.dtype), both).float().chunk(2, dim=-1)
        if self.value.bias is not None:
            key, value = key + self.key.bias, value + self.value.bias
        squares = (key.square().mean(-1, keepdim=True) + EPS) * (query.square().mean(-1, keepdim=True) + EPS)
        return openness((key * query * gain).sum(-1, keepdim=True) * squares.rsqrt()), value


def openness(score: Tensor) -> Tensor:
    """Gate value from the score of key and query: the sigmoid of the signed square root."""
    return torch.sigmoid(score * score.abs().clamp_min(1e-6).rsqrt())


class UnigramLayer(nn.Module):
    """The EnhancedEngramModule of the engram-poc project, unchanged from its publication.

    A single-token hash ``id * multiplier mod slots`` with four multipliers and one modulus, mean over the heads, an MLP
    gate that starts at sigmoid(-5), a linear merge, added to a layer's output. Only the projections of the original's
    content-addressing option are omitted: the option is off by default and does not affect the published results.

    Args:
        slots: rows of the table (published runs: 500).
        hidden_size: d of the backbone; a row is as wide.
    """

    MULTIPLIERS = (17, 31, 53, 79)
    taps, values = (), None  # it has no convolution

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
        self._forward = Forward()

    def cast_products(self, dtype: torch.dtype) -> None:
        """Cast the weights of all products once, after training, instead of at each product."""
        for product in (self.gate_in, self.gate_out, self.merge):
            product.to(dtype)

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Table rows of each token, int64 [batch, tokens, heads]. Template tokens have rows like any other token."""
        rows: NDArray[np.int64] = ids[..., None] * np.array(self.MULTIPLIERS) % len(self.table)
        return rows

    def set_slots(self, slots: Tensor, earlier: Earlier | None = None) -> None:
        """See `EngramLayer.set_slots`."""
        self._forward.slots = slots

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [batch, tokens, d] -> the same plus the gated, merged mean of the token's rows."""
        slots = self._forward.slots
        assert slots is not None, "set_slots comes first"
        memory = embedding(slots, self.table).mean(dim=-2)
        with low_precision(hidden.device, hidden.dtype):
            gate_in = torch.cat([hidden.float(), memory], dim=-1)
            gate = torch.sigmoid(self.gate_out(torch.relu(self.gate_in(gate_in))))
            added: Tensor = self.merge(gate * memory).to(hidden.dtype)
        return hidden + added


def low_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Compute products of float32 weights in `dtype`. Does not cache the casts, because the weights may train."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype, cache_enabled=False)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Find the transformer blocks by structure: the longest ModuleList whose members share one class.

    Raises:
        ValueError: the model has no such list.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of equal layers to attach a memory to")
    return max(lists, key=len)


@contextmanager
def injected(
    model: nn.Module, memories: Mapping[int, Callable[[Tensor], Tensor]], *, after: bool = False
) -> Iterator[None]:
    """Run each memory on the input (or, `after`, the output) of its layer while the context lasts.

    It uses only hooks. No weight and no module of the model changes, so leaving restores the model bit for bit.
    """
    layers = decoder_layers(model)
    handles = [_hook(layers[layer], memory, after) for layer, memory in memories.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: nn.Module, memory: Callable[[Tensor], Tensor], after: bool) -> Any:
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
