"""Write single facts into a trained memory, by setting table rows that no earlier key reads.

Only rows that neither training nor an earlier fact uses are changed. So known answers stay the same bit for bit, and
forgetting a fact means removing its rows. The projections and gates, which turn rows into hidden states, keep their
trained weights. Only the last layer's table receives rows: that is enough for one fact, and the layers below it run
only once.
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
from engram_bench.errors import UsageError
from engram_bench.memory.addresses import fact_pairs
from engram_bench.memory.hashing import Int64Array
from engram_bench.memory.torch import EngramLayer
from engram_bench.prompts import Pair

RATE, BETAS = 3.0, (0.5, 0.9)  # chosen on facts that no benchmark uses
MOST_STEPS = 40
ENOUGH, AIM = 4.0, 5.0  # log-odds in nats: stop when every answer token has 98%; the loss pulls tokens up to 99%


class WritableMemory:
    """An n-gram memory that accepts written facts; see `base.Writable`.

    Args:
        model: the model that the memory belongs to, without an attached adapter.
        adapter: the memory.
    """

    def __init__(self, model: Network, adapter: EngramAdapter) -> None:
        self._model, self.adapter = model, adapter

    @property
    def facts(self) -> Mapping[str, str]:
        return self.adapter.addresses.facts

    def write(self, key: str, value: str, name: str = "") -> Written:
        """Store `value` under `key`, whatever it is called; see `Addresses.with_fact` for the errors it raises.

        It also raises UsageError for a value that contains what ends an answer or a turn of the model.

        Stops after `MOST_STEPS` at the latest. The answer is certain if `Written.log_odds` exceeds `ENOUGH`.
        """
        started = time.perf_counter()
        model, adapter = self._model, self.adapter
        if (ending := model.encoder.ending(value, model.stop_ids)) is not None:
            raise UsageError(f"{value!r} contains {ending!r}, which ends this model's answer or turn; change the value")
        addresses = adapter.addresses.with_fact(key, value, model.encoder)
        pairs, memory = fact_pairs(key, value, model.encoder), adapter.layers[addresses.last]
        touched = addresses.touched(pairs)[addresses.last]
        fresh = np.append(False, ~np.isin(touched, memory.row_ids))  # row 0 stays zero
        adapter.readdress(addresses)
        with _reduced_table(memory, touched), model.attached(adapter):
            steps, log_odds = _optimize(model, adapter, pairs, torch.from_numpy(fresh)[:, None])
        return Written(time.perf_counter() - started, steps, log_odds, int(fresh.sum()))

    def forget(self, key: str) -> None:
        """Remove a written fact; see `Addresses.without_fact` for the errors it raises."""
        self.adapter.readdress(self.adapter.addresses.without_fact(key, self._model.encoder))

    def save(self, folder: Path) -> None:
        self.adapter.save(folder)


@contextmanager
def _reduced_table(memory: EngramLayer, touched: Int64Array) -> Iterator[None]:
    """Inside the context, reduce the table to the rows `touched`, so that optimizer steps skip all other rows."""
    row_ids, table = memory.row_ids, memory.table.data
    memory.hold(touched)
    try:
        yield
    finally:
        table[torch.from_numpy(1 + np.searchsorted(row_ids, touched)).to(table.device)] = memory.table.data[1:]
        memory.row_ids, memory.table = row_ids, Parameter(table)


def _optimize(model: Network, adapter: EngramAdapter, pairs: Sequence[Pair], fresh: Tensor) -> tuple[int, float]:
    """Optimize the table's `fresh` rows, bool [rows, 1], until the answer is certain.

    The loss is how far log-odds fall short of `AIM`. Cross-entropy has almost no gradient for nearly certain tokens.

    Returns:
        Steps taken, and the log-odds of the least certain token.
    """
    memory = adapter.layers[adapter.addresses.last]
    optimizer = torch.optim.Adam([memory.table], lr=RATE, betas=BETAS)
    fresh = fresh.to(memory.table.device)
    frozen = FrozenParts(model, adapter, memory.layer, model.shared_by(pairs), pairs)
    steps = 0
    while True:
        logits, tokens = frozen.answer_logits(pairs)
        odds = log_odds(logits.float(), tokens[:, None])
        worst = odds.min().item()
        if worst > ENOUGH or steps == MOST_STEPS:
            return steps, worst
        steps += 1
        (gradient,) = torch.autograd.grad((AIM - odds).relu().sum(), memory.table)  # no other gradient is needed
        memory.table.grad = gradient * fresh
        optimizer.step()


def log_odds(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-odds of given tokens [tokens, 1] against all other tokens: logits [tokens, vocabulary] -> [tokens, 1]."""
    return logits.gather(-1, tokens) - logits.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
