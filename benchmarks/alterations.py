"""Changes for the sweep that no variant has an option for: the memory's gate, a convolution after it, the schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from engram_bench.backends.torch.backend import TorchModel
from engram_bench.memory.torch import EngramLayer
from engram_bench.prompts import Prompt, shared_prefix

KERNEL, DILATION = 4, 3  # as in the paper

GATES = {  # default: sigmoid of the signed square root of the score
    "open": torch.ones_like,
    "plain sigmoid": torch.sigmoid,
}
SCHEDULES = {  # learning-rate factors; default: warm-up over 5% of the steps, and linear decay
    "constant": lambda done, steps: min(1.0, (done + 1) / max(1, round(0.05 * steps))),
    "no warm-up": lambda done, steps: 1 - done / steps,
    "cosine": lambda done, steps: (1 + math.cos(math.pi * done / steps)) / 2,
}


class Convolved(EngramLayer):
    """Y = SiLU(conv(RMSNorm(V))) + V on the memory's output V, depthwise and causal (arXiv:2601.07372, section 2.3).

    The kernel starts at zero. No cache stores its earlier inputs, so `uncached` must do the decoding.
    """

    def __init__(self, config: Any, layer: int, hasher: Any, row_ids: Any, hidden_size: int) -> None:
        super().__init__(config, layer, hasher, row_ids, hidden_size)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.convolution = nn.Conv1d(
            hidden_size, hidden_size, KERNEL, dilation=DILATION, groups=hidden_size, bias=False
        )
        nn.init.zeros_(self.convolution.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        added = super().forward(hidden.float()) - hidden.float()
        before = pad(self.norm(added).transpose(1, 2), (DILATION * (KERNEL - 1), 0))
        return (hidden.float() + added + silu(self.convolution(before).transpose(1, 2))).to(hidden.dtype)


@torch.inference_mode()
def uncached(model: TorchModel, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
    """Decode greedily without a KV cache: one forward pass over the whole text per token."""
    prefix = shared_prefix(prompts)
    state = model.prefix_state(prompts[0], prefix)
    answers: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        logits, _ = model.forward(state, model.rows([(prompts[i], answers[i]) for i in live], prefix), keep=1)
        chosen = dict(zip(live, logits[:, -1].max(-1).indices.tolist(), strict=True))
        live = [i for i in live if chosen[i] not in model.stop_ids]
        for i in live:
            answers[i].append(chosen[i])
        if not live:
            break
    return answers


@contextmanager
def altered(model: TorchModel, gate: str = "", schedule: str = "", convolution: bool = False) -> Iterator[None]:
    """Inside the context, train and answer with these changes instead of the defaults."""
    with ExitStack() as stack:
        if gate:
            stack.enter_context(patch("engram_bench.memory.torch.openness", GATES[gate]))
        if schedule:
            stack.enter_context(patch("engram_bench.backends.training.rate", SCHEDULES[schedule]))
        if convolution:
            stack.enter_context(patch("engram_bench.backends.torch.adapters.EngramLayer", Convolved))
            stack.enter_context(patch.object(model, "generate", partial(uncached, model)))
        yield
