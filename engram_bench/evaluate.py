"""Questions through a model: prompts in, scored samples out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engram_bench import metrics
from engram_bench.backends.base import Backend, Progress
from engram_bench.patterns import Item, PatternSet

TEMPERATURE = 0.8
GREEDY = 0  # the sample number of the greedy answer; those drawn at TEMPERATURE count from 1


@dataclass(frozen=True)
class Question:
    """An item asked in one split; the phrasing is the template its input was put into."""

    split: str
    item: Item
    phrasing: str
    prompt: str


@dataclass(frozen=True)
class Sample:
    """One answer, scored: a line of samples.jsonl. `tokens` counts what was generated, end-of-text left out."""

    variant: str
    category: str
    split: str
    item: str
    phrasing: str
    seed: int
    sample: int
    prompt: str
    expected: str
    output: str
    tokens: int
    canonical_tokens: int
    exact: bool
    prefix: bool


def questions(patterns: PatternSet, cells: Iterable[tuple[str, str]]) -> list[Question]:
    """The questions of some (category, split) cells: one for each item, its phrasing chosen by its id."""
    return [
        Question(split, item, *category.question(item, split))
        for name, split in sorted(cells)
        for category in (patterns.categories[name],)
        for item in category.split(split)
    ]


def sampling_seed(question: Question, seed: int, sample: int) -> int:
    """A seed that depends on what is asked and on nothing else, so that order and batch leave samples alone."""
    text = f"{question.split}\0{question.item.id}\0{seed}\0{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def answer(
    backend: Backend,
    variant: str,
    asked: Sequence[Question],
    *,
    seed: int,
    samples: int,
    sampled_items: int | None,
    max_new_tokens: int,
    progress: Progress,
) -> list[Sample]:
    """Greedy answers to all questions, and some drawn ones, from the model as it is now attached.

    `samples` are drawn for each seen item, or for `sampled_items` of each category: those with the smallest ids.
    """
    rows: list[tuple[Question, int]] = [(question, GREEDY) for question in asked]
    rows += [(question, n) for question in _sampled(asked, sampled_items) for n in range(1, samples + 1)]
    prompts = {question.prompt: backend.encoder.prompt(question.prompt) for question in asked}
    answers = backend.generate(
        [prompts[question.prompt] for question, _ in rows],
        max_new_tokens,
        seeds=[None if n == GREEDY else sampling_seed(question, seed, n) for question, n in rows],
        temperature=TEMPERATURE,
        progress=progress,
    )
    return [_score(backend, variant, q, seed, n, tokens) for (q, n), tokens in zip(rows, answers, strict=True)]


def _sampled(asked: Sequence[Question], items: int | None) -> list[Question]:
    by_category: dict[str, list[Question]] = {}
    for question in sorted(asked, key=lambda q: q.item.id):
        if question.split == "seen":
            by_category.setdefault(question.item.category, []).append(question)
    return [question for questions in by_category.values() for question in questions[:items]]


def _score(backend: Backend, variant: str, question: Question, seed: int, n: int, tokens: Sequence[int]) -> Sample:
    item, output = question.item, backend.encoder.decode(tokens)
    return Sample(
        variant=variant,
        category=item.category,
        split=question.split,
        item=item.id,
        phrasing=question.phrasing,
        seed=seed,
        sample=n,
        prompt=question.prompt,
        expected=item.output,
        output=output,
        tokens=len(tokens),
        canonical_tokens=len(backend.encoder.answer(item.output)) - 1,
        exact=metrics.exact(output, item.output),
        prefix=metrics.prefix(output, item.output),
    )
