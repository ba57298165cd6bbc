"""Asks a model the questions of a plan and scores its answers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice, zip_longest
from typing import NamedTuple

from engram_bench import metrics
from engram_bench.backends.base import Backend, Progress
from engram_bench.data import questions as by_category
from engram_bench.data.items import PatternSet
from engram_bench.data.questions import CHOOSES, CONTAINS, STATES, UNTOUCHED, Question
from engram_bench.data.ways import WAYS
from engram_bench.prompts import Prompt
from engram_bench.records import GREEDY, REPEAT, Sample, SampleKey

TEMPERATURE = 0.8
REPEATED = 4  # greedy answers asked for again
Generate = Callable[..., list[list[int]]]  # `Backend.generate`
ROOM = 8  # tokens of an answer beside two values
STEP = 8  # tokens


class Request(NamedTuple):
    """A question and which answer to generate: `GREEDY`, `REPEAT`, or the number of a sampled answer."""

    question: Question
    sample: int


@dataclass(frozen=True)
class Plan:
    """All requests to one variant with one training seed.

    Attributes:
        prompts: maps each question's text to the encoded prompt the model gets.
        batches: requests to decode together, in order.
        longest: see `max_tokens`.
    """

    prompts: Mapping[str, Prompt]
    batches: Sequence[Sequence[Request]]
    longest: Mapping[str, int]


def questions(
    patterns: PatternSet, cells: Iterable[tuple[str, str]], most: Callable[[str], int | None] = lambda way: None
) -> list[Question]:
    """The questions of some (category, way) pairs; `most`: the limit in a way, see `data.questions.questions`."""
    return [
        question
        for name, way in sorted(cells)
        for question in by_category.questions(patterns.categories[name], way, most(way))
    ]


def max_tokens(question: Question, longest: Mapping[str, int]) -> int:
    """Limit of an answer in tokens, a multiple of `STEP`, so that what a model adds to a short value is seen.

    Args:
        question: the question. Where the value may stand within a sentence or beside another one, there is more room.
        longest: tokens of the longest right answer of each category, end-of-text included. A longer answer is wrong
            anyway.
    """
    own = longest[question.item.category]
    return math.ceil((2 * own + ROOM if question.rule in (CONTAINS, CHOOSES, STATES) else own) / STEP) * STEP


def requests(
    asked: Sequence[Question], samples: int, sampled_items: int | None, greedy_only: bool = False
) -> list[Request]:
    """All requests to a variant with one training seed.

    Every question gets one greedy answer. Unless `greedy_only`, seen items also get `samples` sampled answers;
    `sampled_items` limits this to the items with the smallest ids in each category. `REPEATED` of them, of as many
    categories as there are, get their greedy answer again, in another batch.
    """
    greedy = [Request(question, GREEDY) for question in asked]
    if greedy_only or not samples:
        return greedy
    by_category = _sampled(asked, sampled_items)
    in_turn = filter(None, chain(*zip_longest(*by_category)))
    again = [Request(question, REPEAT) for question in islice(in_turn, REPEATED)]
    return [*greedy, *again, *(Request(question, n) for question in chain(*by_category) for n in range(1, samples + 1))]


def plan(
    asked: Sequence[Question],
    prompts: Mapping[str, Prompt],
    batch_size: int,
    samples: int,
    sampled_items: int | None,
    longest: Mapping[str, int],
    greedy_only: bool = False,
) -> Plan:
    """Put the `requests` into batches; prompts with the same earlier turns follow each other.

    Batches depend only on the questions and their earlier turns, so variants without such turns see the same batches.
    `greedy_only` leaves out the sampled and repeated answers without regrouping the rest.
    """
    every = requests(asked, samples, sampled_items)
    first, repeats = ([request for request in every if (request.sample == REPEAT) is again] for again in (False, True))
    ids = {text: prompt.ids for text, prompt in prompts.items()}
    turns = {text: prompt.ids[: prompt.earlier] for text, prompt in prompts.items()}
    first.sort(key=lambda r: (len(ids[r.question.prompt]), ids[r.question.prompt], *_order(r)))
    repeats.sort(key=lambda r: r.question.item.id)
    batches = []
    for part in (first, repeats):
        batches += _batches(sorted(part, key=lambda r: turns[r.question.prompt]), batch_size)
    if greedy_only:
        batches = [few for batch in batches if (few := [request for request in batch if request.sample == GREEDY])]
    return Plan(prompts, batches, longest)


def sampling_seed(question: Question, seed: int, sample: int) -> int:
    """A seed that depends only on the request, so that neither order nor batch changes a sampled answer."""
    text = f"{question.split}\0{question.item.id}\0{seed}\0{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def answer(
    backend: Backend,
    variant: str,
    planned: Plan,
    *,
    seed: int,
    progress: Progress,
    generate: Generate | None = None,
    kept: Collection[SampleKey] = (),
    known: Mapping[str, str] | None = None,
    untouched: Mapping[str, str] | None = None,
    recurring: bool = True,
) -> Iterator[list[Sample]]:
    """Generate and score the answers of a plan, batch by batch, with the currently attached adapter.

    Args:
        backend: the model.
        variant: name to put into the samples.
        planned: from `plan`.
        seed: training seed of the adapter.
        progress: called after every batch.
        generate: in place of the backend's own.
        kept: answers that a resumed run already has. A batch is skipped if all its answers are here; otherwise all of
            it is decoded again, so that batches do not depend on interruptions.
        known: answers that need no model, such as a dictionary's, by the question's text.
        untouched: the untouched model's answers, by the question's text, where these are the right ones; None: this is
            the untouched model.
        recurring: whether other variants are asked the same prompts, see `Backend.generate`.

    Yields:
        The samples of one batch.
    """
    known, generate = known or {}, generate or backend.generate
    done, total = 0, sum(map(len, planned.batches))

    def read(question: Question) -> int:
        """Tokens that the model reads before its answer."""
        return 0 if question.prompt in known else len(planned.prompts[question.prompt].ids)

    for batch in planned.batches:
        if any(key(variant, request, seed) not in kept for request in batch):
            unknown = [(question, n) for question, n in batch if question.prompt not in known]
            made = iter(
                generate(
                    [planned.prompts[question.prompt] for question, _ in unknown],
                    [max_tokens(question, planned.longest) for question, _ in unknown],
                    seeds=[sampling_seed(question, seed, n) if n > GREEDY else None for question, n in unknown],
                    temperature=TEMPERATURE,
                    recurring=recurring,
                )
            )
            answers = [
                backend.encoder.answer(known[q.prompt])[:-1] if q.prompt in known else next(made) for q, _ in batch
            ]
            yield [
                _score(backend, variant, q, seed, n, tokens, untouched, read(q))
                for (q, n), tokens in zip(batch, answers, strict=True)
            ]
        done += len(batch)
        progress("decode", done, total)


def summary(samples: Iterable[Sample]) -> str:
    """Right greedy answers by way of asking, in one line, such as "right: seen 100%, mention 20%"."""
    right: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.sample == GREEDY:
            right.setdefault(sample.split, []).append(bool(sample.exact))
    shares = {way: sum(right[way]) / len(right[way]) for way in WAYS if way in right}
    return "right: " + ", ".join(f"{way} {share:.0%}" for way, share in shares.items())


def _batches(requests: Iterable[Request], size: int) -> list[list[Request]]:
    """Batches of up to `size` requests; those with the same prompt stay together, even if they exceed `size`."""
    batches: list[list[Request]] = []
    for _, alike in groupby(requests, key=lambda request: request.question.prompt):
        some = list(alike)
        if not batches or len(batches[-1]) + len(some) > size:
            batches.append([])
        batches[-1] += some
    return batches


def _order(request: Request) -> tuple[str, str, int]:
    return request.question.split, request.question.item.id, request.sample


def key(variant: str, request: Request, seed: int) -> SampleKey:
    """The identity of the answer to a request."""
    question, n = request
    return SampleKey(variant, question.item.category, question.split, question.item.id, seed, n)


def _sampled(asked: Sequence[Question], items: int | None) -> list[list[Question]]:
    """The `seen` questions of each category, of the items with the smallest ids."""
    by_category: dict[str, list[Question]] = {}
    for question in sorted(asked, key=lambda q: q.item.id):
        if question.split == "seen":
            by_category.setdefault(question.item.category, []).append(question)
    return [questions[:items] for questions in by_category.values()]


def _score(
    backend: Backend,
    variant: str,
    question: Question,
    seed: int,
    n: int,
    tokens: Sequence[int],
    untouched: Mapping[str, str] | None,
    prompt_tokens: int,
) -> Sample:
    item, output = question.item, backend.encoder.decode(tokens)
    expected = "; ".join(question.wanted)
    if question.rule == UNTOUCHED:
        expected = output if untouched is None else untouched[question.prompt]
    return Sample(
        variant=variant,
        category=item.category,
        split=question.split,
        item=item.id,
        phrasing=question.phrasing,
        seed=seed,
        sample=n,
        prompt=question.prompt,
        expected=expected,
        output=output,
        tokens=len(tokens),
        canonical_tokens=len(backend.encoder.answer(expected)) - 1,
        exact=right(question, output, expected),
        prefix=metrics.prefix(output, expected),
        prompt_tokens=prompt_tokens,
    )


def right(question: Question, output: str, expected: str) -> bool:
    """Whether an answer is right by the rule of its way."""
    if question.rule not in (CONTAINS, CHOOSES, STATES):
        return metrics.exact(output, expected)
    if any(metrics.contains(output, value) for value in question.unwanted):
        return False
    if question.rule in (CHOOSES, STATES):
        whole = question.rule == STATES
        return all(metrics.says(output, value, question.prompt, in_sentence=whole) for value in question.wanted)
    return all(metrics.contains(output, value) for value in question.wanted)
