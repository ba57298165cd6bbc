"""The training loop, one for every kind of adapter: AdamW on the answer tokens, nothing else moves.

The tokens all prompts share are run once a step with batch size 1 and expanded to the rows, gradients included, which
is exact for a causal model and a third of the arithmetic. A memory that never fires on them needs them only once.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engram_bench.backends.base import Progress, Training
from engram_bench.backends.torch_adapters import Adapter, Pair
from engram_bench.errors import UsageError
from engram_bench.prompts import shared_prefix
from engram_bench.variants import TrainingConfig

if TYPE_CHECKING:
    from engram_bench.backends.torch import Prefix, TorchModel

IGNORED = -100
SORT_WITHIN = 8  # batches: rows of like length meet, yet the order stays random from epoch to epoch


def train(
    model: TorchModel, adapter: Adapter, config: TrainingConfig, pairs: Sequence[Pair], seed: int, progress: Progress
) -> Training:
    """Train the attached adapter in place.

    Args:
        model: the backend, with `adapter` attached.
        config: epochs, batch size, learning rates; linear warm-up, then linear decay to zero.
        pairs: prompts and answers, the answer's end-of-text included.
        seed: drives the order of the examples.
        progress: called after every step.
    """
    started = time.perf_counter()
    groups = adapter.parameter_groups()
    rates = [config.table_lr if group["tables"] else config.lr for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, config.beta2), fused=True)
    adapter.training(True)
    prefix = shared_prefix([prompt for prompt, _ in pairs])
    fixed: Prefix | None = None
    if not adapter.acts_on_template:
        with torch.no_grad():
            fixed = model.prefix_state(pairs[0][0], prefix)

    rng = random.Random(seed)
    steps = config.epochs * math.ceil(len(pairs) / config.batch_size)
    warm_up = max(1, round(0.05 * steps))
    losses: list[float] = []
    step = 0
    for _ in range(config.epochs):
        total = tokens = 0.0
        for batch in _batches(pairs, config.batch_size, rng):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (step + 1) / warm_up) * (1 - step / steps)
            state = fixed if fixed is not None else model.prefix_state(batch[0][0], prefix)
            keep = max(len(answer) for _, answer in batch)
            rows = model.rows([(prompt, answer[:-1]) for prompt, answer in batch], prefix)
            labels = _labels(batch, keep).to(model.device)
            wanted = labels != IGNORED
            logits, _ = model.forward(state, rows, keep, wanted)
            loss = cross_entropy(logits.float(), labels[wanted])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if config.clip:
                torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], config.clip)
            optimizer.step()
            count = len(logits)
            total, tokens, step = total + loss.item() * count, tokens + count, step + 1
            progress(f"loss {total / tokens:.3f}", step, steps)
        losses.append(total / tokens)
        if not math.isfinite(losses[-1]):
            raise UsageError(f"training diverged: the loss is {losses[-1]}; use a lower lr or table_lr")
    adapter.training(False)
    return Training(time.perf_counter() - started, len(pairs), config.epochs, tuple(losses))


def _batches(pairs: Sequence[Pair], size: int, rng: random.Random) -> list[list[Pair]]:
    order = rng.sample(range(len(pairs)), len(pairs))
    chunk = size * SORT_WITHIN
    ordered = [
        i
        for start in range(0, len(order), chunk)
        for i in sorted(order[start : start + chunk], key=lambda i: len(pairs[i][0].ids) + len(pairs[i][1]))
    ]
    batches = [[pairs[i] for i in ordered[start : start + size]] for start in range(0, len(ordered), size)]
    rng.shuffle(batches)
    return batches


def _labels(batch: Sequence[Pair], keep: int) -> Tensor:
    """int64 [rows, keep]: the answer tokens, right-aligned like the logits they are compared with."""
    labels = torch.full((len(batch), keep), IGNORED)
    for row, (_, answer) in enumerate(batch):
        labels[row, keep - len(answer) :] = torch.tensor(answer)
    return labels
