"""Checks of the items against the model's tokenizer, before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from engram_bench.data.items import PatternSet
from engram_bench.errors import UsageError
from engram_bench.prompts import PromptEncoder


def faults(patterns: PatternSet, encoder: PromptEncoder, stop_ids: Collection[int]) -> list[str]:
    """Return one line for each item that this model cannot be asked or cannot answer: file, line, reason, remedy.

    Args:
        patterns: the items.
        encoder: the model's tokenizer and template.
        stop_ids: tokens that end an answer, end-of-text among them.
    """
    return list(_unanswerable(patterns, encoder, stop_ids))


def _unanswerable(patterns: PatternSet, encoder: PromptEncoder, stop_ids: Collection[int]) -> Iterator[str]:
    for category in patterns.categories.values():
        for item in category.items:
            try:
                encoder.prompt(item.input)
                ending = encoder.ending(item.output, stop_ids)
            except UsageError as error:
                yield f"{item.place}: {error}"
                continue
            if ending is not None:
                why = "which ends this model's answer or turn, so no answer can contain it"
                yield f"{item.place}: output {item.output!r:.120} contains {ending!r}, {why}; change the output"
