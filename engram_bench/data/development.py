"""Questions for choosing recipes, so that no recipe is chosen by the questions that judge it.

They are asked in sentences that no other profile asks and no run trains (``patterns/prompts/development.yaml``). The
profile draws its own items. Training is the same.
"""

from __future__ import annotations

from dataclasses import replace

from engram_bench.data import prompt_sets
from engram_bench.data.items import Category, PatternSet, Wordings

FILE = prompt_sets.FOLDER / "development.yaml"
# Kinds of sentences beside a category's name, and CATEGORY/RELATION and CATEGORY/combined.
OTHERS, MENTION, CONTROL, COMBINED = "others", "mention", "control", "combined"


def development(patterns: PatternSet) -> PatternSet:
    """The same items with development sentences for `rephrased` and `mention`; and where there are any, in plain words.

    Each item is asked in all its plain sentences, so that few facts, which train quickly, give many questions.

    Two keys, stated values and neighbours are asked in the sentences that need only key and value, two keys also in
    those of a category's own. Applied questions, which need sentences of their own, are left out.
    """
    sentences = prompt_sets.read(FILE)

    mention = tuple(sentences[MENTION])

    def own(category: str, relation: str, trained: tuple[str, ...]) -> Wordings:
        paraphrased, combined = (tuple(sentences.get(f"{category}/{of}", ())) for of in (relation, COMBINED))
        return Wordings(trained, paraphrased, mention, combined=combined, in_each=True)

    def changed(category: Category) -> Category:
        items = (replace(item, paraphrased=(), applied=()) for item in category.items)
        return replace(
            category,
            rephrased=tuple(sentences.get(category.name, sentences[OTHERS])),
            items=tuple(items),
            wordings={of: own(category.name, of, w.trained) for of, w in category.wordings.items()}
            or {"": Wordings(mention=mention)},
        )

    return PatternSet({name: changed(category) for name, category in patterns.categories.items()})


def control() -> list[str]:
    """Prompts that have nothing to do with the patterns."""
    return prompt_sets.read(FILE)[CONTROL]
