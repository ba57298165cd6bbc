"""One fact into a trained memory, at once: the rows its n-grams are the first to need, and no other number, are moved.

The n-grams of a new key have rows that no trained key reads, and those of the facts before it stay as they are. So what
is known stays known to the bit, and forgetting is taking the rows out again. The rest of the memory - how rows become
hidden states - is what training left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from engram_bench.backends.torch_adapters import EngramAdapter
from engram_bench.backends.torch_lower import LowerLayers
from engram_bench.memory.addresses import fact_pairs
from engram_bench.memory.hashing import Int64Array
from engram_bench.memory.torch import decoder_layers
from engram_bench.prompts import Pair, shared_prefix

if TYPE_CHECKING:
    from engram_bench.backends.torch import TorchModel

RATE, BETAS = 0.5, (0.9, 0.99)
MOST_STEPS = 40
ENOUGH = 0.05  # nats: the worst answer token is all but certain


@dataclass(frozen=True)
class Written:
    """How a fact was written: wall time, steps taken, loss of its worst token (nats), and rows that it brought."""

    seconds: float
    steps: int
    loss: float
    rows: int


def write(model: TorchModel, adapter: EngramAdapter, key: str, value: str) -> Written:
    """Store `value` under `key` in a memory that is not attached; see `Addresses.with_fact` for what is refused."""
    started = time.perf_counter()
    addresses = adapter.addresses.with_fact(key, value, model.encoder)
    pairs = fact_pairs(key, value, model.encoder)
    touched = addresses.touched(pairs, model.encoder.eos_id)
    new = {layer: np.setdiff1d(rows, adapter.addresses.rows[layer]) for layer, rows in touched.items()}
    adapter.readdress(addresses)
    with _small(adapter, touched) as tables:
        fresh = {layer: torch.from_numpy(np.isin(touched[layer], new[layer]))[:, None] for layer in tables}
        with model.attached(adapter):
            steps, loss = _moved(model, adapter, pairs, tables, fresh)
    return Written(time.perf_counter() - started, steps, loss, sum(map(len, new.values())))


def forget(model: TorchModel, adapter: EngramAdapter, key: str) -> None:
    """Take a written fact out of a memory; see `Addresses.without_fact` for what is refused."""
    adapter.readdress(adapter.addresses.without_fact(key, model.encoder))


@contextmanager
def _small(adapter: EngramAdapter, touched: dict[int, Int64Array]) -> Iterator[dict[int, Parameter]]:
    """Tables of the rows `touched` alone while it lasts, so that a step costs nothing for all the others."""
    whole = {layer: (memory.row_ids, memory.table.data) for layer, memory in adapter.layers.items()}
    for layer, memory in adapter.layers.items():
        memory.hold(touched[layer])
    try:
        yield {layer: memory.table for layer, memory in adapter.layers.items()}
    finally:
        for layer, memory in adapter.layers.items():
            row_ids, table = whole[layer]
            table[torch.from_numpy(np.searchsorted(row_ids, touched[layer])).to(table.device)] = memory.table.data
            memory.row_ids, memory.table = row_ids, Parameter(table)


def _moved(
    model: TorchModel,
    adapter: EngramAdapter,
    pairs: Sequence[Pair],
    tables: dict[int, Parameter],
    fresh: dict[int, Tensor],
) -> tuple[int, float]:
    """Move the fresh rows, [rows, 1] of each layer, until the answer is certain; steps taken and the worst loss."""
    optimizer = torch.optim.Adam(tables.values(), lr=RATE, betas=BETAS)
    prefix = shared_prefix([prompt for prompt, _ in pairs])
    with torch.no_grad():
        state = model.prefix_state(pairs[0][0], prefix)
    lower = LowerLayers(decoder_layers(model.model), adapter.first_layer)
    steps = 0
    while True:
        with lower.skipped(pairs, prefix):
            logits, tokens = model.answer_logits(pairs, state, prefix)
        losses = cross_entropy(logits.float(), tokens, reduction="none")
        worst = losses.max().item()
        if worst < ENOUGH or steps == MOST_STEPS:
            return steps, worst
        steps += 1
        gradients = torch.autograd.grad(losses.mean(), list(tables.values()))  # of the tables, and of nothing else
        for (layer, table), gradient in zip(tables.items(), gradients, strict=True):
            table.grad = gradient * fresh[layer].to(table.device)
        optimizer.step()
