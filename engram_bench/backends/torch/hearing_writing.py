"""Write facts into a trained hearing memory: rows of new names, for a reader that stays as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from engram_bench.backends.base import Written
from engram_bench.backends.torch.frozen import FrozenParts
from engram_bench.backends.torch.hearing import HearingAdapter
from engram_bench.backends.torch.network import Network
from engram_bench.backends.torch.writing import AIM, ENOUGH, log_odds
from engram_bench.memory.hearing import HeardKeys
from engram_bench.memory.keys import key_name
from engram_bench.prompts import Pair, PromptEncoder

RATE, BETAS = 0.3, (0.5, 0.9)
MOST_STEPS = 40
TOGETHER = 32  # questions in a step
PHRASINGS = ("{key}", "What is {key}?")


class Fact(NamedTuple):
    """A fact: the key that asks for it, its value, and the name in the key that carries it."""

    key: str
    value: str
    name: str


def fact_pairs(fact: Fact, encoder: PromptEncoder) -> list[Pair]:
    """The questions that a fact is written from, and their answers."""
    answer = encoder.answer(fact.value)
    return [(encoder.prompt(phrasing.replace("{key}", fact.key)), answer) for phrasing in PHRASINGS]


def write(model: Network, adapter: HearingAdapter, facts: Sequence[Fact], rate: float = RATE) -> Written:
    """Store facts in the rows of their names. No other row changes, and nothing of the reader.

    A new name starts with the mean of all rows. The rows change until each answer is certain, at most `MOST_STEPS`
    times a question.
    """
    started = time.perf_counter()
    names = list(dict.fromkeys(key_name(fact.name) for fact in facts))
    fresh = [name for name in names if name not in adapter.keys.names]
    adapter.add(fresh)
    pairs = [pair for fact in facts for pair in fact_pairs(fact, model.encoder)]
    with model.attached(adapter), _narrowed(adapter, pairs) as found:
        own = torch.tensor([False, *(name in names for name in found)])
        steps, worst = _optimize(model, adapter, pairs, own, rate)
    return Written(time.perf_counter() - started, steps, worst, len(fresh) * len(adapter.rows))


@contextmanager
def _narrowed(adapter: HearingAdapter, pairs: Sequence[Pair]) -> Iterator[list[str]]:
    """Inside the context, the tables have only the rows of the names in these prompts: a step skips the rest."""
    keys, tables = adapter.keys, [memory.table for memory in adapter.rows.values()]
    found = keys.heard(prompt for prompt, _ in pairs)
    at = torch.tensor([0, *(1 + keys.names.index(name) for name in found)])
    adapter.know(HeardKeys(found), [Parameter(table.detach()[at].clone()) for table in tables])
    try:
        yield found
    finally:
        with torch.no_grad():
            for memory, table in zip(adapter.rows.values(), tables, strict=True):
                table[at] = memory.table
        adapter.know(keys, tables)


def _optimize(
    model: Network, adapter: HearingAdapter, pairs: Sequence[Pair], own: Tensor, rate: float
) -> tuple[int, float]:
    """Optimize the rows `own`, bool [rows], until all answers are certain.

    Returns:
        Steps taken, and the log-odds of the least certain token of the last pass.
    """
    tables = [memory.table for memory in adapter.rows.values()]
    optimizer = torch.optim.Adam(tables, lr=rate, betas=BETAS)
    frozen = FrozenParts(model, adapter, adapter.first_layer, model.shared_by(pairs), pairs)
    size = min(TOGETHER, len(pairs))
    passes = -(-len(pairs) // size)
    batches = cycle([pairs[start : start + size] for start in range(0, len(pairs), size)])
    worst: list[float] = []
    for step, batch in enumerate(islice(batches, MOST_STEPS * passes)):
        logits, tokens = frozen.answer_logits(batch)
        odds = log_odds(logits.float(), tokens[:, None])
        worst.append(odds.min().item())
        if min(worst[-passes:]) > ENOUGH and len(worst) >= passes:
            return step, min(worst[-passes:])
        gradients = torch.autograd.grad((AIM - odds).relu().sum(), tables)
        for table, gradient in zip(tables, gradients, strict=True):
            table.grad = gradient * own[:, None].to(gradient.device)
        optimizer.step()
    return len(worst), min(worst[-passes:])
