"""The routing table of engram-poc's README, end to end: a router before the memory, and the answer of its route."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from engram_bench.backends.base import Adapter, Backend
from engram_bench.memory import routing
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


def table(
    backend: Backend, memory: Adapter | None, routes_itself: bool, trained: Collection[str], max_new_tokens: int
) -> list[Record]:
    """Answer `PROMPTS` with the untouched model, and by their route: with the memory attached, or without.

    Args:
        backend: the model.
        memory: the adapter.
        routes_itself: whether the memory has the router inside; it is then attached for all prompts.
        trained: inputs of the items that were trained.
        max_new_tokens: limit of an answer.
    """
    prompts = [backend.encoder.prompt(asked.prompt) for asked in PROMPTS]

    def answers() -> list[str]:
        return [backend.encoder.decode(ids) for ids in backend.generate(prompts, max_new_tokens)]

    untouched = answers()
    with backend.attached(memory):
        attached = answers()
    rows = []
    for (prompt, key), before, after in zip(PROMPTS, untouched, attached, strict=True):
        confidence = routing.confidence(prompt)
        to_memory = confidence >= routing.THRESHOLD
        rows.append(
            {
                "prompt": prompt,
                "confidence": confidence,
                "route": "memory" if to_memory else "model",
                "key": key,
                "trained": key in trained,
                "untouched": before,
                "output": after if to_memory or routes_itself else before,
            }
        )
    return rows
