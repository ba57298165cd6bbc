"""Checks of the items before anything is trained: can this model be asked them, and can a memory tell them apart."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from engram_bench.data.items import Item, PatternSet
from engram_bench.errors import UsageError
from engram_bench.memory.keys import key_name
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


def alike(patterns: PatternSet) -> list[str]:
    """Return one line for each set of inputs that a memory takes for one key, although their outputs differ.

    It folds case, accents, width and white space, see `memory.keys`. So all of these inputs get the same answer.
    """
    by_name: dict[str, list[Item]] = {}
    for category in patterns.categories.values():
        for item in category.items:
            by_name.setdefault(key_name(item.input), []).append(item)
    return [
        f"{items[0].place}: a memory with span: key takes {listed} for one key and answers all of them alike; "
        "change an input in more than case, accents, width or white space"
        for items in by_name.values()
        if len({item.output for item in items}) > 1
        for listed in (", ".join(f"{item.input!r:.60} ({item.place})" for item in items),)
    ]
