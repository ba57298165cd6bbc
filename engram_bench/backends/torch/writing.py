"""Write one fact into a trained memory at once, by changing the rows of its tables that no earlier key reads.

The n-grams of a new key have rows that no trained key reads, and those of the facts before it stay as they are. So what
is known stays known to the bit, and forgetting is taking the rows out again. The rest of the memory - how rows become
hidden states - is what training left. The rows are the last layer's alone: that is enough for one fact, and all layers
below it are run once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from engram_bench.backends.base import Written
from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.backends.torch.frozen import FrozenParts
from engram_bench.backends.torch.network import Network
from engram_bench.memory.addresses import fact_pairs
from engram_bench.memory.hashing import Int64Array
from engram_bench.memory.torch import EngramLayer
from engram_bench.prompts import Pair

RATE, BETAS = 3.0, (0.5, 0.9)  # chosen on facts that no benchmark writes
MOST_STEPS = 40
ENOUGH, AIM = 4.0, 5.0  # nats of log-odds: an answer token of 98% is certain, and those below 99% are worked on


class WritableMemory:
    """An n-gram memory that facts can be written into; see `base.Writable`.

    Args:
        model: what it belongs to, with nothing attached.
        adapter: the memory.
    """

    def __init__(self, model: Network, adapter: EngramAdapter) -> None:
        self._model, self.adapter = model, adapter

    @property
    def facts(self) -> Mapping[str, str]:
        return self.adapter.addresses.facts

    def write(self, key: str, value: str) -> Written:
        """Store `value` under `key`; see `Addresses.with_fact` for what is refused.

        After `MOST_STEPS` it is left as it is, certain or not: `Written.log_odds` tells, by `ENOUGH`.
        """
        started = time.perf_counter()
        model, adapter = self._model, self.adapter
        addresses = adapter.addresses.with_fact(key, value, model.encoder)
        pairs, memory = fact_pairs(key, value, model.encoder), adapter.layers[addresses.last]
        touched = addresses.touched(pairs)[addresses.last]
        fresh = np.append(False, ~np.isin(touched, memory.row_ids))  # never the row of zeros
        adapter.readdress(addresses)
        with _small(memory, touched), model.attached(adapter):
            steps, log_odds = _moved(model, adapter, pairs, torch.from_numpy(fresh)[:, None])
        return Written(time.perf_counter() - started, steps, log_odds, int(fresh.sum()))

    def forget(self, key: str) -> None:
        """Take a written fact out; see `Addresses.without_fact` for what is refused."""
        self.adapter.readdress(self.adapter.addresses.without_fact(key, self._model.encoder))

    def save(self, folder: Path) -> None:
        self.adapter.save(folder)


@contextmanager
def _small(memory: EngramLayer, touched: Int64Array) -> Iterator[None]:
    """A table of the rows `touched` alone while it lasts, so that a step costs nothing for all the others."""
    row_ids, table = memory.row_ids, memory.table.data
    memory.hold(touched)
    try:
        yield
    finally:
        table[torch.from_numpy(1 + np.searchsorted(row_ids, touched)).to(table.device)] = memory.table.data[1:]
        memory.row_ids, memory.table = row_ids, Parameter(table)


def _moved(model: Network, adapter: EngramAdapter, pairs: Sequence[Pair], fresh: Tensor) -> tuple[int, float]:
    """Move the fresh rows of the table, bool [rows, 1], until the answer is certain.

    Returns:
        Steps taken and the worst token's log-odds.

    The loss is how far log-odds fall short, not cross-entropy: that hardly moves what is almost certain.
    """
    memory = adapter.layers[adapter.addresses.last]
    optimizer = torch.optim.Adam([memory.table], lr=RATE, betas=BETAS)
    fresh = fresh.to(memory.table.device)
    prefix = model.shared_by(pairs)
    with torch.no_grad():
        state = model.prefix_state(pairs[0][0], prefix)
    frozen = FrozenParts(model, memory.layer, adapter.acts_on_text, state, prefix, pairs)
    steps = 0
    while True:
        logits, tokens = frozen.answer_logits(pairs)
        odds = _log_odds(logits.float(), tokens[:, None])
        worst = odds.min().item()
        if worst > ENOUGH or steps == MOST_STEPS:
            return steps, worst
        steps += 1
        (gradient,) = torch.autograd.grad((AIM - odds).relu().sum(), memory.table)  # and of nothing else
        memory.table.grad = gradient * fresh
        optimizer.step()


def _log_odds(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of each token, [tokens, 1], against all others: logits [tokens, vocabulary] -> [tokens, 1]."""
    return logits.gather(-1, tokens) - logits.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
