"""The training step in MLX for every kind of adapter: Adam on the adapter's parameters, loss on the answer tokens."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.optimizers import Adam, MultiOptimizer, clip_grad_norm

from engram_bench.backends.base import Progress, Training
from engram_bench.backends.hearing import redraw
from engram_bench.backends.mlx.adapters import MlxAdapter
from engram_bench.backends.mlx.decoding import log_softmax
from engram_bench.backends.mlx.network import Network
from engram_bench.backends.replay import Targets, stacked
from engram_bench.backends.training import Divergences, Hits, run
from engram_bench.prompts import Pair, shared_prefix
from engram_bench.variants.configs import TrainingConfig


def train(
    model: Network,
    adapter: MlxAdapter,
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
    rates = (config.table_lr, config.lr)
    optimizers = [Adam(rate, betas=[0.9, config.beta2], bias_correction=True) for rate in rates]
    optimizer = MultiOptimizer(optimizers, [lambda name, _: adapter.is_table(name)])
    prefix = shared_prefix([prompt for prompt, _ in (*pairs, *targets)])
    fixed = None if adapter.acts_on_template else model.prefix_state(pairs[0][0], prefix)

    def loss(batch: Sequence[Pair], replay: Sequence[Pair]) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        # Computed here, so that gradients also flow through the tokens that all prompts share.
        state = fixed if fixed is not None else model.prefix_state(batch[0][0], prefix)
        logits, tokens = model.answer_logits(batch, state, prefix)
        hits = logits.argmax(-1) == tokens
        on_examples = nn.losses.cross_entropy(logits.astype(mx.float32), tokens, reduction="mean")
        if not replay:
            return on_examples, on_examples, hits, mx.zeros(0)
        untouched = log_softmax(mx.array(stacked(targets, replay)))
        adapted = log_softmax(model.answer_logits(replay, state, prefix)[0])
        kl = (mx.exp(untouched) * (untouched - adapted)).sum(-1)
        return on_examples + config.replay_weight * kl.mean(), on_examples, hits, kl

    loss_and_gradients = nn.value_and_grad(adapter.trained, loss)

    def step(batch: Sequence[Pair], replay: Sequence[Pair], factor: float) -> tuple[float, Hits, Divergences]:
        for part, rate in zip(optimizers, rates, strict=True):
            part.learning_rate = rate * factor
        (_, value, hits, kl), gradients = loss_and_gradients(batch, replay)
        if config.clip:
            gradients, _ = clip_grad_norm(gradients, config.clip)
        optimizer.update(adapter.trained, gradients)
        mx.eval(adapter.trained.trainable_parameters(), optimizer.state)
        return float(value.item()), np.array(hits), np.array(kl)

    adapter.train(True)
    training = run(step, config, pairs, seed, progress, list(targets), redraw(adapter))
    adapter.train(False)
    return training
