"""A training step, one for every kind of adapter: AdamW on the answer tokens, nothing else moves.

The tokens all prompts share are run once a step with batch size 1 and expanded to the rows, gradients included, which
is exact for a causal model and a third of the arithmetic. A memory that never fires on them needs them only once, and
of an example's tokens and layers only those it acts on (`frozen.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy

from engram_bench.backends.base import Progress, Training
from engram_bench.backends.torch.adapters import TorchAdapter
from engram_bench.backends.torch.frozen import FrozenParts
from engram_bench.backends.torch.network import Network
from engram_bench.backends.training import run
from engram_bench.prompts import Pair
from engram_bench.variants.configs import TrainingConfig

MOST_TOKENS = 1024  # padding included, whose gradients are held at once


def train(
    model: Network, adapter: TorchAdapter, config: TrainingConfig, pairs: Sequence[Pair], seed: int, progress: Progress
) -> Training:
    """Train the attached adapter in place.

    Args:
        model: the backend, with `adapter` attached.
        config: epochs, batch size, learning rates.
        pairs: prompts and answers, the answer's end-of-text included.
        seed: drives the order of the examples.
        progress: called after every step.
    """
    started = time.perf_counter()
    groups = adapter.parameter_groups()
    rates = [config.table_lr if group["tables"] else config.lr for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, config.beta2), fused=True)
    prefix = model.shared_by(pairs)
    frozen: FrozenParts | None = None
    if not adapter.acts_on_template:
        with torch.no_grad():
            state = model.prefix_state(pairs[0][0], prefix)
        frozen = FrozenParts(model, adapter.first_layer, adapter.acts_on_text, state, prefix, pairs)

    def step(batch: Sequence[Pair], factor: float) -> tuple[float, int]:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad()
        total, count = 0.0, sum(len(answer) for _, answer in batch)
        for part in [batch] if frozen else _parts(batch, prefix):
            if frozen:
                logits, tokens = frozen.answer_logits(part)
            else:
                logits, tokens = model.answer_logits(part, model.prefix_state(part[0][0], prefix), prefix)
            loss = cross_entropy(logits.float(), tokens, reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if config.clip:
            torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], config.clip)
        optimizer.step()
        return total, count

    adapter.train(True)
    training = run(step, config, pairs, seed, progress)
    adapter.train(False)
    return replace(training, seconds=time.perf_counter() - started)  # what was read beforehand is part of it


def _parts(batch: Sequence[Pair], prefix: int) -> list[Sequence[Pair]]:
    """A batch, or equal parts of it, none of more than `MOST_TOKENS` after the tokens that all share."""
    longest = max(len(prompt.ids) + len(answer) - 1 - prefix for prompt, answer in batch)
    size = max(1, MOST_TOKENS // longest)
    size = math.ceil(len(batch) / math.ceil(len(batch) / size))
    return [batch[start : start + size] for start in range(0, len(batch), size)]
