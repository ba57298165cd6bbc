"""What is trained on: one set of questions for all trained variants of a run, so that only the mechanism differs.

- ``bare``: each trained item in three phrasings.
- ``rich``: these, further wordings, two-key questions, and replay: prompts that must be answered as before.

No sentence of the training is asked in an untrained way, and no key of a trained two-key question in an asked one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from engram_bench.data import prompt_sets
from engram_bench.data.items import Category, Example, Item, PatternSet
from engram_bench.data.questions import others, two_keys, wordings

KINDS = ("rich", "bare")
WORDINGS = 3  # further wordings of an item in the rich training
JOINED = ", "  # between the two values of a two-key answer
FRAMES = (  # two-key questions of categories that have none of their own
    "What are {first} and {second}?",
    "Two things, please: {first}; {second}.",
    "Name {first}, then {second}.",
)
NAMING, CONTRADICTING, UNRELATED = 128, 48, 64  # replay prompts of each kind, at most
CONTRADICTIONS = (  # sentences that state another value
    "According to the old handbook, the entry for {input} is {other}. What does the old handbook say?",
    'My teacher wrote on the board: "{input}: {other}". What stood on the board?',
    "A leaflet claims that {input} is {other}. Quote the leaflet.",
    "Suppose that {input} were {other}. What would it be then?",
    "The old map gives {other} for {input}. Which entry does that map have?",
    "In this story {input} is {other}, whatever the books say. What is it in the story?",
    "Somebody crossed out {input} and wrote {other} beside it. What was written?",
    "Our game has its own rules: {input} counts as {other}. How do the rules put it?",
    "A visitor insisted on {other} for {input}. What did the visitor insist on?",
    "For this exercise only, let {input} be {other}. What is it in this exercise?",
)


@dataclass(frozen=True)
class TrainingSet:
    """What every trained variant of a run is trained on.

    Attributes:
        kind: "rich" or "bare".
        examples: questions with their right answers.
        validation: examples for the validation loss; not trained on.
        replay: prompts on which training keeps the untouched model's distributions.
    """

    kind: str
    examples: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    replay: tuple[str, ...] = ()


def training_set(patterns: PatternSet, kind: str) -> TrainingSet:
    """The training set of a kind, one of `KINDS`."""
    bare, validation = tuple(patterns.training_examples()), tuple(patterns.validation_examples())
    if kind == "bare":
        return TrainingSet(kind, bare, validation)
    more = chain.from_iterable(further(category) for category in patterns.categories.values())
    return TrainingSet(kind, (*bare, *more), validation, tuple(replay(patterns)))


def further(category: Category) -> Iterator[Example]:
    """The examples that the rich training adds: further wordings, and two-key questions."""
    trained = sorted(category.split("seen"), key=lambda item: item.id)
    for item in trained:
        templates = wordings(category, item).trained
        start = int(item.id, 16)
        for turn in range(min(WORDINGS, len(templates))):
            yield _example(templates[(start + turn) % len(templates)], item)
    half, frames = trained[::2], category.frames or FRAMES
    for at, item in enumerate(half):
        partner = half[(at + 1) % len(half)]
        if partner is not item:
            prompt = two_keys(frames[at % len(frames)], item, partner)
            yield Example(prompt, f"{item.output}{JOINED}{partner.output}", None, (item, partner))


def replay(patterns: PatternSet) -> list[str]:
    """Prompts that name a trained key, state another value, or have nothing to do with the patterns; drawn by seed."""
    seen = {name: category.split("seen") for name, category in patterns.categories.items()}
    naming = [prompt for prompt, _ in prompt_sets.mentions(patterns, NAMING)]
    stating = [prompt for items in seen.values() for prompt in _contradictions(items)]
    every = prompt_sets.read(prompt_sets.FOLDER / "routing_negative.yaml")
    unrelated = [text for texts in every.values() for text in texts]
    rng = random.Random("replay")
    return [
        *naming,
        *rng.sample(stating, min(CONTRADICTING, len(stating))),
        *rng.sample(unrelated, min(UNRELATED, len(unrelated))),
    ]


def _contradictions(items: Sequence[Item]) -> Iterator[str]:
    other_of = others(items)
    for item in items:
        if other := other_of(item):
            template = CONTRADICTIONS[int(item.id, 16) % len(CONTRADICTIONS)]
            yield template.replace("{input}", item.input).replace("{other}", other)


def _example(template: str, item: Item) -> Example:
    """A training example over {input} or {name}; only the input itself counts as the key."""
    name = item.names[0] if item.names else item.input
    prompt = template.replace("{name}", name)
    at = prompt.find("{input}")
    prompt = prompt.replace("{input}", item.input)
    return Example(prompt, item.output, (at, at + len(item.input)) if at >= 0 else None, (item,))
