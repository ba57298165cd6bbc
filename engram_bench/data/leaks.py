"""Leaks: what is asked as new must not have been trained, in any category, in any phrasing."""

from __future__ import annotations

from engram_bench.data.items import PatternSet, fill


def plain(text: str) -> str:
    """The text with single spaces for all white space, so that texts that differ in nothing else compare equal."""
    return " ".join(text.split())


def leaks(patterns: PatternSet) -> list[str]:
    """What is wrong with the splits, a line each; empty where nothing is.

    Three ways to leak: a held-out item's question is a training prompt of some item; a rephrased question is; one
    prompt is trained to two answers. A held-out item may be asked in any phrasing of its category: all of them count.
    """
    trained: dict[str, tuple[str, str]] = {}
    found: list[str] = []
    for category in patterns.categories.values():
        for example in category.training_examples():
            prompt = plain(example.prompt)
            answer, other = trained.setdefault(prompt, (example.answer, category.name))
            if answer != example.answer:
                found.append(
                    f"prompt {prompt!r} is trained to {answer!r} in {other!r} and to {example.answer!r} in "
                    f"{category.name!r}; change a phrasing or an input"
                )
    for category in patterns.categories.values():
        asked = {"rephrased": category.rephrased, "heldout": category.trained + category.rephrased}
        for split, phrasings in asked.items():
            for item in category.split(split):
                for prompt in (plain(fill(phrasing, item.input)) for phrasing in phrasings):
                    if prompt in trained:
                        found.append(
                            f"{split} prompt {prompt!r} of {category.name!r} is trained in {trained[prompt][1]!r}; "
                            "change a phrasing or an input"
                        )
    return found
