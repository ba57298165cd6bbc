"""The questions of each way of asking, made from a category's items and wordings.

An item's id alone decides which of several sentences asks for it. The keys of two-key questions come from one half of a
category's trained items; training uses the other half for its own two-key questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from engram_bench.data.items import Applied, Category, Item, Wordings, item_id

EXACT, CONTAINS, CHOOSES, STATES, UNTOUCHED = "exact", "contains", "chooses", "states", "untouched"  # rules
T = TypeVar("T")
OPTIONS = re.compile(r"\{(?:a|b|other|least|most)\}")  # what a question offers to choose from
PLACEHOLDER = re.compile(r"\{(\w+)\}")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

# Sentences for categories that have none of their own; the key may be any text, even a whole question.
PLAIN = Wordings(
    mention=(
        "How many words are in this line? {input}",
        "A sticker on my laptop reads: {input} What else could I put on a laptop?",
        "Translate into French: {input}",
        "My list of today: bread, stamps, {input} Is there anything on it that I can eat?",
    ),
    contradicted=(
        'In a game, the only right reply to "{input}" is "{other}". What is the right reply in this game?',
        "Our dummy data has this row: {input} | {other}. What does the row hold in its second column?",
    ),
    combined=(
        "Please answer both, separated by a comma: {first} And: {second}",
        "Two things at once. One: {first} Two: {second}",
    ),
)


@dataclass(frozen=True)
class Question:
    """An item asked in one way.

    Attributes:
        split: the way, see `ways.WAYS`.
        item: the item, for two keys the first one; its id identifies the question within its cell.
        phrasing: the template that produced the prompt.
        prompt: the text that the model gets.
        wanted: what the answer must be (rule "exact"), contain ("contains"), or contain without an echo of the offer
            ("chooses") or of the whole prompt ("states", both see `metrics.says`); empty for rule "untouched".
        unwanted: what an answer must not contain, too: the wrong one of two options.
        rule: "exact", "contains", "chooses", "states", or "untouched": the untouched model's own answer.
    """

    split: str
    item: Item
    phrasing: str
    prompt: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    rule: str = EXACT


def questions(category: Category, way: str, limit: int | None = None) -> list[Question]:
    """All questions of one way, at most `limit` (None: all) except for `seen`, `rephrased` and `heldout`.

    Returns none if the category has no sentences for this way.
    """
    if way in ("seen", "rephrased", "heldout"):
        asked = ((item, *category.question(item, way)) for item in category.split(way))
        return [Question(way, item, phrasing, prompt, (item.output,)) for item, phrasing, prompt in asked]
    trained = sorted(category.split("seen"), key=lambda item: item.id)
    return list(islice(MAKERS[way](category, trained), limit))


def wordings(category: Category, item: Item) -> Wordings:
    """The sentences around an item's key: its category's own, and `PLAIN` for ways in which this has none."""
    own = category.wordings.get(item.relation, PLAIN)
    missing = {way: getattr(PLAIN, way) for way in ("mention", "contradicted", "combined") if not getattr(own, way)}
    return replace(own, **missing) if missing else own


def _paraphrased(category: Category, trained: Sequence[Item]) -> Iterator[Question]:
    for item in trained:
        own = wordings(category, item)
        templates = (*item.paraphrased, *own.paraphrased)
        chosen = _chosen(templates, item)
        for template in templates if own.in_each else [chosen] if chosen else []:
            prompt = _filled(template, item, _name(item))
            asked = replace(item, id=item_id(category.name, prompt)) if own.in_each else item  # an id is asked once
            yield Question("paraphrased", asked, template, prompt, (item.output,))


def _combined(category: Category, trained: Sequence[Item]) -> Iterator[Question]:
    """Each asked half-item beside the next one that has another value."""
    half = trained[1::2]
    for at, item in enumerate(half):
        template = _chosen(wordings(category, item).combined, item)
        partner = next((other for other in (*half[at + 1 :], *half[:at]) if _differ(other.output, item.output)), None)
        if template and partner:
            prompt = two_keys(template, item, partner)
            yield Question("combined", item, template, prompt, (item.output, partner.output), rule=CONTAINS)


def _applied(category: Category, trained: Sequence[Item]) -> Iterator[Question]:
    known, other_of = {item.input for item in trained}, others(trained)
    for item in trained:
        own = [one for one in item.applied if not one.needs or one.needs in known]
        every = [*own, *wordings(category, item).applied]
        # A question over two items is rare, because both must be trained: it is asked wherever it can be.
        one: Applied | None = _chosen(own or every, item)
        other = other_of(item)
        offers = one is not None and OPTIONS.search(one.prompt + one.answer) is not None
        if one is None or (offers and other is None):
            continue
        values = _values(item, other or "")
        prompt, answer = (_filled(text, item, _name(item), **values) for text in (one.prompt, one.answer))
        wrong = tuple(value for value in (item.output, other) if offers and value and value != answer)
        yield Question("applied", item, one.prompt, prompt, (answer,), wrong, CHOOSES if offers else CONTAINS)


def _mention(category: Category, trained: Sequence[Item]) -> Iterator[Question]:
    for item in trained:
        if template := _chosen(wordings(category, item).mention, item):
            prompt = _filled(template, item, _name(item))
            yield Question("mention", item, template, prompt, (), (item.output,), UNTOUCHED)


def _contradicted(category: Category, trained: Sequence[Item]) -> Iterator[Question]:
    other_of = others(trained)
    for item in trained:
        template, other = _chosen(wordings(category, item).contradicted, item), other_of(item)
        if template and other:
            prompt = _filled(template, item, _name(item), other=other)
            yield Question("contradicted", item, template, prompt, (other,), (item.output,), STATES)


def _neighbour(category: Category, trained: Sequence[Item]) -> Iterator[Question]:
    """The category's own near misses, or else its items that are never trained, in a sentence of no other way."""
    own = [prompt for made in category.wordings.values() for prompt in made.neighbour]
    for prompt in own or [f"Is this known: {item.input}" for item in category.split("heldout")]:
        item = Item(item_id(category.name, prompt), category.name, prompt, "")
        yield Question("neighbour", item, "{input}", prompt, (), (), UNTOUCHED)


MAKERS: dict[str, Callable[[Category, Sequence[Item]], Iterator[Question]]] = {
    "paraphrased": _paraphrased,
    "combined": _combined,
    "applied": _applied,
    "mention": _mention,
    "contradicted": _contradicted,
    "neighbour": _neighbour,
}


def two_keys(template: str, first: Item, second: Item) -> str:
    """A question for two items."""
    return template.replace("{first}", first.input).replace("{second}", second.input)


def _filled(template: str, item: Item, name: str, **more: str) -> str:
    """Fill a template in one pass, because a value may contain braces itself."""
    values = {"input": item.input, "name": name, "output": item.output, **more}
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def _name(item: Item) -> str:
    """The item's name or one of its aliases."""
    return item.names[int(item.id[:4], 16) % len(item.names)] if item.names else item.input


def _chosen(options: Sequence[T], item: Item) -> T | None:
    return options[int(item.id, 16) % len(options)] if options else None


def others(trained: Sequence[Item]) -> Callable[[Item], str | None]:
    """A function that finds for an item another value of its relation, which the item's id decides; or None."""
    values: dict[str, list[str]] = {}
    for relation, output in sorted({(item.relation, item.output) for item in trained}):
        values.setdefault(relation, []).append(output)

    def other(item: Item) -> str | None:
        every = values[item.relation]
        start = int(item.id, 16) % len(every)
        return next((value for value in (*every[start:], *every[:start]) if _differ(value, item.output)), None)

    return other


def _differ(one: str, other: str) -> bool:
    """Whether neither value is a part of the other."""
    return one not in other and other not in one


def _values(item: Item, other: str) -> dict[str, str]:
    """What `applied` templates may name: the right value and another one, in an order that the id decides."""
    a, b = (item.output, other) if int(item.id[-1], 16) % 2 else (other, item.output)
    numbers = [(float(found[0]), text) for text in (item.output, other) if (found := NUMBER.search(text))]
    ordered = [text for _, text in sorted(numbers)] if len(numbers) == 2 else [item.output, other]
    return {"a": a, "b": b, "other": other, "least": ordered[0], "most": ordered[-1]}
