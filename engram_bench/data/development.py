"""Questions for choosing recipes, so that no recipe is chosen by the questions that judge it.

They are asked of the same items as the quick profile asks, in sentences that no other profile asks and no run trains
(``patterns/prompts/development.yaml``). Training is the same.
"""

from __future__ import annotations

from dataclasses import replace

from engram_bench.data import prompt_sets
from engram_bench.data.items import Category, PatternSet, Wordings

FILE = prompt_sets.FOLDER / "development.yaml"
OTHERS, MENTION, CONTROL = "others", "mention", "control"  # kinds of sentences beside the categories' names


def development(patterns: PatternSet) -> PatternSet:
    """The same items with development sentences for `rephrased` and `mention`.

    Two keys, stated values and neighbours are asked in the sentences that need only key and value; plain words and
    applied questions, which need sentences of their own, are left out.
    """
    sentences = prompt_sets.read(FILE)

    def changed(category: Category) -> Category:
        mention = tuple(sentences[MENTION])
        items = (replace(item, paraphrased=(), applied=()) for item in category.items)
        return replace(
            category,
            rephrased=tuple(sentences.get(category.name, sentences[OTHERS])),
            items=tuple(items),
            wordings={of: Wordings(w.trained, mention=mention) for of, w in category.wordings.items()}
            or {"": Wordings(mention=mention)},
        )

    return PatternSet({name: changed(category) for name, category in patterns.categories.items()})


def control() -> list[str]:
    """Prompts that have nothing to do with the patterns."""
    return prompt_sets.read(FILE)[CONTROL]
