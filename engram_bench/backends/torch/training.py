"""The training step for every kind of adapter: AdamW on the adapter's parameters, loss on the answer tokens.

On a CPU, the tokens that all prompts share run once per step with batch size 1 and are expanded to the rows, gradients
included. For a causal model this is exact, and it takes a third of the computation. On an accelerator, one pass runs
all tokens of a step. The steps of an n-gram memory run only the tokens and layers that it acts on (`frozen.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engram_bench.backends.base import Progress, Training
from engram_bench.backends.hearing import redraw
from engram_bench.backends.replay import Targets
from engram_bench.backends.torch.adapters import TorchAdapter
from engram_bench.backends.torch.frozen import FrozenParts, packs
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
    at_once = model.device != "cpu"  # starting operations takes most of a GPU's time here, so a step has few large ones
    prefix = 0 if at_once and adapter.acts_on_template else model.shared_by(texts)
    frozen: FrozenParts | None = None
    if adapter.first_layer or not adapter.acts_on_template or packs(model, texts):
        known = list(targets) if redraw(adapter) else texts  # whose examples change from step to step
        frozen = FrozenParts(model, adapter, adapter.first_layer, prefix, known or texts[:1])

    def passes(batch: Sequence[Pair], replay: Sequence[Pair]) -> Iterator[tuple[Sequence[Pair], Sequence[Pair]]]:
        """Examples and replay texts of each forward pass."""
        few = sum(len(prompt.ids) + len(answer) - prefix for prompt, answer in [*batch, *replay]) <= MOST_TOKENS
        if frozen and (at_once or (frozen.packs and few)):
            yield batch, replay
        else:
            whole = frozen and not frozen.packs
            yield from ((part, ()) for part in ([batch] if whole else _parts(batch, prefix)))
            yield from (((), part) for part in ([replay] if whole else _parts(replay, prefix)) if part)

    def answer_logits(part: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        if frozen:
            return frozen.answer_logits(part)
        return model.answer_logits(part, model.prefix_state(part[0][0], prefix), prefix)

    def step(batch: Sequence[Pair], replay: Sequence[Pair], factor: float) -> tuple[float, Hits, Divergences]:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad()
        total, hits, kl = 0.0, [np.empty(0, bool)], [np.empty(0, np.float32)]
        for examples, unchanged in passes(batch, replay):
            logits, tokens = answer_logits([*examples, *unchanged])
            own = _tokens(examples)
            loss = cross_entropy(logits[:own].float(), tokens[:own], reduction="sum") / _tokens(batch)
            each = divergences(logits[own:], targets, unchanged) if unchanged else torch.zeros(0, device=logits.device)
            (loss + config.replay_weight * each.sum() / max(1, _tokens(replay))).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            hits.append((logits[:own].detach().argmax(-1) == tokens[:own]).cpu().numpy())
            kl.append(each.detach().cpu().numpy())
        if config.clip:
            torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], config.clip)
        optimizer.step()
        return total, np.concatenate(hits), np.concatenate(kl)

    adapter.train(True)
    training = run(step, config, pairs, seed, progress, list(targets), redraw(adapter))
    adapter.train(False)
    return replace(training, seconds=time.perf_counter() - started)  # includes the time for `FrozenParts`


def _tokens(pairs: Sequence[Pair]) -> int:
    """Number of answer tokens."""
    return sum(len(answer) for _, answer in pairs)


def _parts(batch: Sequence[Pair], prefix: int) -> list[Sequence[Pair]]:
    """Split a batch into equal parts of at most `MOST_TOKENS` tokens each, without the shared prefix."""
    if not batch:
        return []
    longest = max(len(prompt.ids) + len(answer) - 1 - prefix for prompt, answer in batch)
    size = max(1, MOST_TOKENS // longest)
    size = math.ceil(len(batch) / math.ceil(len(batch) / size))
    return [batch[start : start + size] for start in range(0, len(batch), size)]
