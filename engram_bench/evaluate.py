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
    max_new_tokens: int,
    progress: Progress,
) -> list[Sample]:
    """Greedy answers to all questions, and `samples` more of each seen item, from the model as it is now attached."""
    prompts = {question.prompt: backend.encoder.prompt(question.prompt) for question in asked}
    repeated = [(question, n) for question in asked if question.split == "seen" for n in range(1, samples + 1)]
    greedy = backend.generate([prompts[q.prompt] for q in asked], max_new_tokens, progress=progress)
    drawn = backend.generate(
        [prompts[q.prompt] for q, _ in repeated],
        max_new_tokens,
        temperature=TEMPERATURE,
        seeds=[sampling_seed(q, seed, n) for q, n in repeated],
        progress=progress,
    )
    answers = [(q, GREEDY, tokens) for q, tokens in zip(asked, greedy, strict=True)]
    answers += [(q, n, tokens) for (q, n), tokens in zip(repeated, drawn, strict=True)]
    return [_score(backend, variant, question, seed, n, tokens) for question, n, tokens in answers]


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
