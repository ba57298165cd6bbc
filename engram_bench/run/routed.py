"""The routing table of engram-poc's README, end to end: a router before the memory, and the answer of its route."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from engram_bench.backends.base import Adapter, Backend
from engram_bench.backends.routed import rules
from engram_bench.memory.routing import THRESHOLD
from engram_bench.records import Record


class Routed(NamedTuple):
    """A prompt of the table, and the input of the item that it asks for, or None."""

    prompt: str
    key: str | None


PROMPTS = (
    Routed("ACRONYM:GPU", "ACRONYM:GPU"),
    Routed("CAPITAL:France", "CAPITAL:France"),
    Routed("What is the capital of France?", "CAPITAL:France"),
    Routed("Write a poem about cats", None),
    Routed("How do I sort a list?", None),
)


def table(backend: Backend, memory: Adapter | None, trained: Collection[str], max_new_tokens: int) -> list[Record]:
    """Answer `PROMPTS` with the untouched model, and by their route: with the memory attached, or without.

    Args:
        backend: the model.
        memory: the adapter. If it has a router, this decides; else the rules do.
        trained: inputs of the items that were trained.
        max_new_tokens: limit of an answer.
    """
    prompts = [backend.encoder.prompt(asked.prompt) for asked in PROMPTS]

    def answers() -> list[str]:
        return [backend.encoder.decode(ids) for ids in backend.generate(prompts, max_new_tokens)]

    confidences = (getattr(memory, "confidence", None) or rules)(prompts)
    untouched = answers()
    with backend.attached(memory):
        attached = answers()
    rows = []
    for (prompt, key), confidence, before, after in zip(PROMPTS, confidences, untouched, attached, strict=True):
        to_memory = confidence >= THRESHOLD
        rows.append(
            {
                "prompt": prompt,
                "confidence": confidence,
                "route": "memory" if to_memory else "model",
                "key": key,
                "trained": key in trained,
                "untouched": before,
                "output": after if to_memory else before,
            }
        )
    return rows
