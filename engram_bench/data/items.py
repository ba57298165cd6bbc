"""Items and categories: how they are split, phrased for training, and sampled. Pure functions; no file access."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

HELDOUT_SHARE = 0.2
SPARE = 12  # items of a category that the run leaves out and solved examples may show
TRAINED_WAYS = 3  # phrasings per trained item; a category may define more, so that training sees more sentences
TRAINED = ("{input}", "Complete: {input}", "What belongs to {input} here?")
REPHRASED = ("Continue: {input}", "Answer this: {input}", "Given {input}, what is the answer?")


@dataclass(frozen=True)
class Applied:
    """A question that needs an item's value for something, and its right answer; both are templates.

    `needs`, if set, is the input of another item that must be trained, too: the second hop over two items.
    """

    prompt: str
    answer: str
    needs: str = ""


@dataclass(frozen=True)
class Wordings:
    """Sentences around the keys of a category, or of one relation in it: templates by way of asking.

    Their placeholders are filled by `questions.questions`. `trained` are further sentences of the rich training.
    """

    trained: tuple[str, ...] = ()
    paraphrased: tuple[str, ...] = ()
    mention: tuple[str, ...] = ()
    contradicted: tuple[str, ...] = ()
    applied: tuple[Applied, ...] = ()
    combined: tuple[str, ...] = ()
    neighbour: tuple[str, ...] = ()
    in_each: bool = False  # asks each item in every sentence of `paraphrased`, not in one


@dataclass(frozen=True)
class Item:
    """A pattern: an input and its one right answer, `output`. `id` depends only on category and input.

    Attributes:
        names: what the input is called in plain words: a name, then its aliases.
        relation: which of the category's wordings fit; of a triple, its relation.
        paraphrased: questions of this item's own for the way `paraphrased`.
        applied: questions of its own for the way `applied`.
        place: where it was read, "file:line", for messages; it decides nothing and enters no fingerprint.
    """

    id: str
    category: str
    input: str
    output: str
    names: tuple[str, ...] = ()
    relation: str = ""
    paraphrased: tuple[str, ...] = ()
    applied: tuple[Applied, ...] = ()
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Example:
    """A training example.

    Attributes:
        key: the (start, end) character span of the item's input in the prompt; None if the prompt asks in other words
            or for two items.
        items: those whose values are the answer, in their order.
    """

    prompt: str
    answer: str
    key: tuple[int, int] | None
    items: tuple[Item, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Category:
    """Items of one kind and their phrasings. No phrasing is both trained and rephrased."""

    name: str
    group: str
    source: str
    trained: tuple[str, ...]
    rephrased: tuple[str, ...]
    items: tuple[Item, ...]
    profile: str = ""  # "full": smaller profiles skip this category, unless every category is "full"
    wordings: Mapping[str, Wordings] = field(default_factory=dict)  # by relation; "" without relations
    frames: tuple[str, ...] = ()  # trained sentences over two keys, {first} and {second}
    holds_out: bool = True  # False: every item is trained
    spare: tuple[Item, ...] = ()  # neither trained nor asked: solved examples

    def heldout_ids(self) -> frozenset[str]:
        """Ids of the items that are never trained: the fifth with the smallest ids, so every run holds out the same."""
        if not self.holds_out:
            return frozenset()
        ids = sorted(item.id for item in self.items)
        return frozenset(ids[: max(1, round(HELDOUT_SHARE * len(ids)))])

    def split(self, name: str) -> tuple[Item, ...]:
        """The items asked in the way `name`: those never trained for `heldout`, else the trained ones."""
        heldout = self.heldout_ids()
        return tuple(item for item in self.items if (item.id in heldout) == (name == "heldout"))

    def question(self, item: Item, split: str, turn: int = 0) -> tuple[str, str]:
        """Return (phrasing, prompt text) for an item in a split; the item's id alone selects the phrasing.

        `turn` moves on to the next phrasings; it repeats a question only after all phrasings are used.
        """
        phrasings = self.rephrased if split == "rephrased" else self.trained
        phrasing = phrasings[(int(item.id, 16) + turn) % len(phrasings)]
        return phrasing, fill(phrasing, item.input)

    def trained_phrasings(self, item: Item) -> tuple[str, ...]:
        """The phrasings an item is trained in, at most `TRAINED_WAYS`; its `seen` question uses the first."""
        ways = min(TRAINED_WAYS, len(self.trained))
        return tuple(self.question(item, "seen", turn)[0] for turn in range(ways))

    def training_examples(self) -> list[Example]:
        """Every trained item in each of its trained phrasings."""
        return [example(phrasing, item) for item in self.split("seen") for phrasing in self.trained_phrasings(item)]

    def validation_examples(self) -> list[Example]:
        """Every trained item in a rephrased phrasing that its own question does not use.

        Empty if the category has only one rephrased phrasing. No example repeats a question of the suites. But the
        questions use the same phrasings for other items, so a recipe chosen by this loss is tuned to them.
        """
        if len(self.rephrased) < 2:
            return []
        return [example(self.question(item, "rephrased", turn=1)[0], item) for item in self.split("seen")]


def fill(phrasing: str, text: str) -> str:
    """Replace `{input}` by `text`. `str.format` would fail on phrasings that contain other braces."""
    return phrasing.replace("{input}", text)


def example(phrasing: str, item: Item) -> Example:
    """The training example of an item in one phrasing."""
    start = phrasing.index("{input}")
    prompt = fill(phrasing, item.input)
    return Example(prompt, item.output, (start, start + len(item.input)), (item,))


@dataclass(frozen=True)
class PatternSet:
    """Categories by name, in file order."""

    categories: dict[str, Category]

    @property
    def sha256(self) -> str:
        """Fingerprint of everything that decides what is trained and asked: items, outputs, phrasings."""
        content = json.dumps(
            [asdict(c, dict_factory=_without_place) for c in self.categories.values()],
            ensure_ascii=False,
            sort_keys=True,
        )
        return hashlib.sha256(content.encode()).hexdigest()

    def first_seen(self) -> tuple[Item, str]:
        """The first trained item of the first category that has one, and its question."""
        item = next(item for category in self.categories.values() for item in category.split("seen"))
        return item, self.categories[item.category].question(item, "seen")[1]

    def training_examples(self) -> list[Example]:
        """The training data: `Category.training_examples` of every category."""
        return [example for category in self.categories.values() for example in category.training_examples()]

    def validation_examples(self) -> list[Example]:
        """`Category.validation_examples` of every category."""
        return [example for category in self.categories.values() for example in category.validation_examples()]

    def sample(self, sizes: Mapping[str, int] | int, seed: int = 0) -> PatternSet:
        """Draw at most a given number of items from each category.

        Each category has its own random generator, so categories do not affect each other. Held-out and trained items
        are drawn separately, so an item keeps its split.

        Args:
            sizes: one number for all categories, or numbers by category name or group. The name takes precedence;
                a category with neither keeps all its items.
            seed: a different seed draws different items.
        """

        def size(category: Category) -> int:
            every = len(category.items)
            if isinstance(sizes, int):
                return sizes
            return sizes.get(category.name, sizes.get(category.group, every))

        return PatternSet({name: _sample(c, size(c), seed) for name, c in self.categories.items()})

    def trained_inputs(self) -> set[str]:
        """The inputs of all items that are trained."""
        return {item.input for category in self.categories.values() for item in category.split("seen")}

    def without_extra(self) -> PatternSet:
        """The set without categories of the full profile, or the whole set if it contains no others."""
        kept = {name: c for name, c in self.categories.items() if not c.profile}
        return PatternSet(kept) if kept else self


def _without_place(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    unsaid = (
        ("holds_out", True),
        ("spare", ()),
        ("in_each", False),
    )  # so that the fingerprint of data without these fields stays as it was
    return {name: value for name, value in fields if name != "place" and (name, value) not in unsaid}


def _sample(category: Category, size: int, seed: int) -> Category:
    if len(category.items) <= size:
        return category
    items = (_whole_subjects if any(item.relation for item in category.items) else _single_items)(category, size, seed)
    return replace(category, items=items, spare=_spare(category, items, seed))


def _spare(category: Category, drawn: Sequence[Item], seed: int) -> tuple[Item, ...]:
    """Draw `SPARE` items that may be trained, but are not: none of the drawn ones, nor another fact of their names."""
    names = {name for item in drawn for name in (item.input, *item.names)}
    rest = [item for item in category.split("seen") if names.isdisjoint((item.input, *item.names))]
    return tuple(random.Random(f"{seed}:{category.name}:spare").sample(rest, min(SPARE, len(rest))))


def _single_items(category: Category, size: int, seed: int) -> tuple[Item, ...]:
    """Draw `size` items."""
    rng = random.Random(f"{seed}:{category.name}")
    never = category.split("heldout")
    heldout = rng.sample(never, max(1, round(HELDOUT_SHARE * size)) if never else 0)
    chosen = {item.id for item in heldout + rng.sample(category.split("seen"), size - len(heldout))}
    return tuple(item for item in category.items if item.id in chosen)


def _whole_subjects(category: Category, size: int, seed: int) -> tuple[Item, ...]:
    """Draw about `size` triples: all triples of some subjects, and of the subjects that their values name.

    So the name alone never decides the value, and second hops lead to trained triples. A few triples are left out, so
    that the share of held-out ones is `HELDOUT_SHARE` and each of them is held out in every run. The first subject has
    one, so that a small draw has one, too.
    """
    never = category.heldout_ids()
    of: dict[str, list[Item]] = {}
    for item in category.items:
        of.setdefault(item.names[0], []).append(item)
    names = sorted(of)
    random.Random(f"{seed}:{category.name}").shuffle(names)
    first = next((name for name in names if any(item.id in never for item in of[name])), names[0])
    names.remove(first)
    names.insert(0, first)
    chosen: dict[str, None] = {}
    count = 0
    while names and count < size:
        following = [names.pop(0)]
        while following and count < size:
            name = following.pop(0)
            if name not in chosen:
                chosen[name] = None
                count += len(of[name])
                following += [item.output for item in of[name] if item.output in of]
    found = sorted((item for item in category.items if item.names[0] in chosen), key=lambda item: item.id)
    if not never:
        return tuple(item for item in category.items if item.names[0] in chosen)
    heldout, seen = ([item for item in found if (item.id in never) == out] for out in (True, False))
    for_each = (1 - HELDOUT_SHARE) / HELDOUT_SHARE  # trained items for one held-out item
    count = min(len(heldout), round(len(seen) / for_each))
    kept = {item.id for item in heldout[:count] + seen[: round(count * for_each)]}
    return tuple(item for item in category.items if item.id in kept)


def item_id(category: str, text: str) -> str:
    """16 hex digits that identify an item across runs and machines."""
    return hashlib.sha256(f"{category}\0{text}".encode()).hexdigest()[:16]
