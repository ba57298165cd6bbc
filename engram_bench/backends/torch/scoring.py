"""Score given texts: log-probabilities of their tokens, and how much an adapter changes the distributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_bench.backends.base import Adapter, Collateral, Text
from engram_bench.backends.torch.network import Network

ANSWERS = 64  # rows per batch if only the answer tokens are scored
WHOLE_TEXTS = 8  # rows per batch if every token is scored
COMPARED = 32  # tokens compared together: [32, 50,000] float32 fits in a processor's cache
TURN = 4  # batches between switches of the adapter: attaching a LoRA takes as long as scoring one batch


def log_probabilities(model: Network, texts: Sequence[Text]) -> list[list[float]]:
    """See `Backend.log_probabilities`."""
    found: list[list[float]] = []
    for batch in _chunks(texts, ANSWERS):
        prefix = model.shared_by(batch)
        logits, tokens = model.answer_logits(batch, model.prefix_state(batch[0][0], prefix), prefix)
        logs = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0].cpu().tolist()
        ends = np.cumsum([len(answer) for _, answer in batch]).tolist()
        found += [logs[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return found


def collateral(
    model: Network, adapter: Adapter | None, texts: Sequence[Text], *, answers_only: bool = False
) -> Collateral:
    """See `Backend.collateral`."""
    logits_of = _answer_logits if answers_only else _logits
    kl: list[NDArray[np.float64]] = []
    same: list[NDArray[np.bool_]] = []
    # Alternate with and without the adapter every few batches: all distributions together do not fit in memory.
    by_length = sorted(texts, key=lambda text: len(text[0].ids) + len(text[1]))  # reduces padding
    for few in _chunks(by_length, WHOLE_TEXTS * TURN):
        batches = list(_chunks(few, WHOLE_TEXTS))
        with model.attached(None):
            before = [logits_of(model, batch) for batch in batches]
        with model.attached(adapter):
            for batch, base in zip(batches, before, strict=True):
                for some in zip(
                    torch.split(base, COMPARED), torch.split(logits_of(model, batch), COMPARED), strict=True
                ):
                    p, q = (logits.float().log_softmax(-1) for logits in some)
                    kl.append((p.exp() * (p - q)).sum(-1).cpu().numpy())
                    same.append((p.max(-1).indices == q.max(-1).indices).cpu().numpy())
    return Collateral.over(kl, same)


def _logits(model: Network, batch: Sequence[Text]) -> Tensor:
    """Logits of all tokens after the shared prefix, text by text: [tokens, vocabulary]."""
    prefix = model.shared_by(batch)
    state, rows = model.prefix_state(batch[0][0], prefix), model.rows(batch, prefix)
    return model.forward(state, rows, keep=0, places=rows.mask > 0)[0]


def _answer_logits(model: Network, batch: Sequence[Text]) -> Tensor:
    """Logits that predict the answers' tokens, text by text: [tokens, vocabulary]."""
    prefix = model.shared_by(batch)
    return model.answer_logits(batch, model.prefix_state(batch[0][0], prefix), prefix)[0]


def _chunks(texts: Sequence[Text], size: int) -> Iterator[Sequence[Text]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
