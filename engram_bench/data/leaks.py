"""Leak check: no prompt of an untrained way may be a training prompt of any category, in any kind of training."""

from __future__ import annotations

from engram_bench.data.items import PatternSet, fill
from engram_bench.data.questions import MAKERS, questions
from engram_bench.data.training import further, replay


def plain(text: str) -> str:
    """Collapse white space, so that texts that differ only in white space compare equal."""
    return " ".join(text.split())


def leaks(patterns: PatternSet) -> list[str]:
    """Return one line for each leak between the splits; an empty list means there are none.

    A prompt of an untrained way may equal a training prompt or a replayed one, or one prompt may be trained to two
    answers. Held-out items are checked in every phrasing of their category.
    """
    trained: dict[str, tuple[str, str]] = {}
    found: list[str] = []
    for category in patterns.categories.values():
        for example in (*category.training_examples(), *further(category)):
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
    replayed = {plain(prompt) for prompt in replay(patterns)}
    for category in patterns.categories.values():
        for question in (q for way in MAKERS for q in questions(category, way)):
            prompt = plain(question.prompt)
            if prompt in trained or prompt in replayed:
                why = f"trained in {trained[prompt][1]!r}" if prompt in trained else "replayed in training"
                found.append(
                    f"{question.item.place or category.name}: {question.split} prompt {question.prompt!r} is {why}; "
                    "change a sentence or an input"
                )
    return found
