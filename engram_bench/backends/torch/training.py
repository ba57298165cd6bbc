"""The training step for every kind of adapter: AdamW on the adapter's parameters, loss on the answer tokens.

The tokens that all prompts share run once per step with batch size 1 and are expanded to the rows, gradients included.
For a causal model this is exact, and it takes a third of the computation. The steps of an n-gram memory run only the
tokens and layers that it acts on (`frozen.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engram_bench.backends.base import Progress, Training
from engram_bench.backends.replay import Targets
from engram_bench.backends.torch.adapters import TorchAdapter
from engram_bench.backends.torch.frozen import FrozenParts
from engram_bench.backends.torch.network import Network
from engram_bench.backends.torch.replay import divergences
from engram_bench.backends.training import Divergences, Hits, run
from engram_bench.prompts import Pair
from engram_bench.variants.configs import TrainingConfig

MOST_TOKENS = 1024  # in one backward pass, padding included; limits memory


def train(
    model: Network,
    adapter: TorchAdapter,
    config: TrainingConfig,
    pairs: Sequence[Pair],
    seed: int,
    progress: Progress,
    targets: Targets,
) -> Training:
    """Train the attached adapter in place.

    Args:
        model: the backend, with `adapter` attached.
        config: steps, batch size, learning rates.
        pairs: prompts and answers, end-of-text included.
        seed: drives the order of the examples and of the replay texts.
        progress: called after every step.
        targets: replay texts, and the untouched model's distributions on them.
    """
    started = time.perf_counter()
    groups = adapter.parameter_groups()
    rates = [config.table_lr if group["tables"] else config.lr for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, config.beta2), fused=True)
    texts = [*pairs, *targets]
    prefix = model.shared_by(texts)
    frozen: FrozenParts | None = None
    if adapter.first_layer or not adapter.acts_on_template:
        frozen = FrozenParts(model, adapter, adapter.first_layer, prefix, texts)

    def parts(batch: Sequence[Pair]) -> Sequence[Sequence[Pair]]:
        return [batch] if frozen else _parts(batch, prefix)

    def answer_logits(part: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        if frozen:
            return frozen.answer_logits(part)
        return model.answer_logits(part, model.prefix_state(part[0][0], prefix), prefix)

    def step(batch: Sequence[Pair], replay: Sequence[Pair], factor: float) -> tuple[float, Hits, Divergences]:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad()
        total, count, hits = 0.0, sum(len(answer) for _, answer in batch), []
        for part in parts(batch):
            logits, tokens = answer_logits(part)
            loss = cross_entropy(logits.float(), tokens, reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            hits.append((logits.detach().argmax(-1) == tokens).cpu().numpy())
        kl, count = [np.empty(0, np.float32)], sum(len(answer) for _, answer in replay)
        for part in parts(replay) if replay else ():
            each = divergences(answer_logits(part)[0], targets, part)
            (config.replay_weight * each.sum() / count).backward()  # type: ignore[no-untyped-call]
            kl.append(each.detach().cpu().numpy())
        if config.clip:
            torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], config.clip)
        optimizer.step()
        return total, np.concatenate(hits), np.concatenate(kl)

    adapter.train(True)
    training = run(step, config, pairs, seed, progress, list(targets))
    adapter.train(False)
    return replace(training, seconds=time.perf_counter() - started)  # includes the time for `FrozenParts`


def _parts(batch: Sequence[Pair], prefix: int) -> list[Sequence[Pair]]:
    """Split a batch into equal parts of at most `MOST_TOKENS` tokens each, without the shared prefix."""
    longest = max(len(prompt.ids) + len(answer) - 1 - prefix for prompt, answer in batch)
    size = max(1, MOST_TOKENS // longest)
    size = math.ceil(len(batch) / math.ceil(len(batch) / size))
    return [batch[start : start + size] for start in range(0, len(batch), size)]
