"""Distributions of the untouched model, and the divergence from them, in torch; see `backends.replay`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_bench.backends.replay import Targets, stacked
from engram_bench.prompts import Pair

BATCH = 16  # texts whose distributions are computed together; limits memory


@torch.no_grad()
def distributions(logits_of: Callable[[Sequence[Pair]], Tensor], pairs: Sequence[Pair]) -> Targets:
    """The untouched distributions on given answers, of a model that does not decode as a backend does.

    Args:
        logits_of: gives the logits of a batch, [answer tokens, vocabulary], without an adapter.
        pairs: prompts and answers.
    """
    found: Targets = {}
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        logs = logits_of(batch).float().log_softmax(-1).half().cpu().numpy()
        ends = np.cumsum([len(answer) for _, answer in batch])
        found |= zip(batch, np.split(logs, ends[:-1]), strict=True)
    return found


def divergences(logits: Tensor, targets: Targets, pairs: Sequence[Pair]) -> Tensor:
    """KL(untouched || adapted) of each answer token, in nats: [answer tokens], from logits [answer tokens, vocabulary].

    The stored probabilities are scaled to sum to one, so that rounding leaves no negative divergence.
    """
    untouched = torch.from_numpy(stacked(targets, pairs)).to(logits.device).float().log_softmax(-1)
    found: Tensor = _Divergence.apply(logits, untouched)  # type: ignore[no-untyped-call]
    return found


class _Divergence(torch.autograd.Function):
    """KL(p || softmax(logits)), with the gradient softmax(logits) - p: a third of what autograd reads and writes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, untouched: Tensor) -> Tensor:
        adapted, p = logits.float().log_softmax(-1), untouched.exp()
        ctx.save_for_backward(adapted, p)
        ctx.dtype = logits.dtype
        return (untouched - adapted).mul_(p).sum(-1)  # autocast would round a matrix product

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:
        adapted, p = ctx.saved_tensors
        return (adapted.exp() - p).mul_(factor[:, None]).to(ctx.dtype), None
