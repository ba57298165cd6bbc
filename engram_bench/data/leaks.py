"""Leak check: no rephrased or held-out prompt may be a training prompt of any category."""

from __future__ import annotations

from engram_bench.data.items import PatternSet, fill


def plain(text: str) -> str:
    """Collapse white space, so that texts that differ only in white space compare equal."""
    return " ".join(text.split())


def leaks(patterns: PatternSet) -> list[str]:
    """Return one line for each leak between the splits; an empty list means there are none.

    There are three kinds of leak: a held-out prompt equals a training prompt, a rephrased prompt equals one, or one
    prompt is trained to two answers. Held-out items are checked in every phrasing of their category.
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
