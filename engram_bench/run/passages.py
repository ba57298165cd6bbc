"""How an adapter changes the continuation of running text that holds keys and asks nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from engram_bench.backends.base import Adapter, Backend, Text
from engram_bench.data.prompt_sets import Passage
from engram_bench.records import Record


def measure(
    backend: Backend, adapter: Adapter | None, passages: Sequence[Passage], texts: Sequence[Text], *, keyed: bool
) -> Record:
    """The record of an adapter on passages of one kind; schema.json describes its keys.

    Args:
        backend: the model.
        adapter: the adapter, or None.
        passages: of one kind.
        texts: the passages as prompts, each with the untouched model's continuation.
        keyed: whether the adapter is a memory that looks for keys. Only such a memory can fire falsely: any other
            adapter acts on every text.
    """
    words = sum(len(passage.text.split()) for passage in passages)
    firings = sum(adapter.span(prompt) is not None for prompt, _ in texts) if adapter and keyed else None
    # End-of-text follows each continuation, so that an empty one is compared, too.
    ended = [(prompt, (*answer, backend.encoder.eos_id)) for prompt, answer in texts]
    return {
        "kind": passages[0].kind,
        "words": words,
        "keys": sum(len(passage.keys) for passage in passages),
        "firings": firings,
        "firings_per_1000_words": None if firings is None else 1000 * firings / words,
        **asdict(backend.collateral(adapter, ended, answers_only=True)),
    }
