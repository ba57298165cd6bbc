"""The data a run is made of: items in categories, how they are split, phrased and sampled. Pure; reads no file."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

SPLITS = ("seen", "rephrased", "heldout")
HELDOUT_SHARE = 0.2
TRAINED_WAYS = 3  # phrasings each item is trained in; a category may have more, so that training sees more sentences
TRAINED = ("{input}", "Complete: {input}", "What belongs to {input} here?")
REPHRASED = ("Continue: {input}", "Answer this: {input}", "Given {input}, what is the answer?")


@dataclass(frozen=True)
class Item:
    """A pattern: `input` has one right answer, `output`. `id` depends on category and input alone."""

    id: str
    category: str
    input: str
    output: str


@dataclass(frozen=True)
class Example:
    """A training example; `key` is where in the prompt the item's input stands, as (start, end) characters."""

    prompt: str
    answer: str
    key: tuple[int, int]


@dataclass(frozen=True)
class Category:
    """Items of one kind, and the sentences they are asked in. No phrasing is in both lists."""

    name: str
    group: str
    source: str
    trained: tuple[str, ...]
    rephrased: tuple[str, ...]
    items: tuple[Item, ...]
    profile: str = ""  # "full": of all the categories of a folder, the smaller profiles leave this one out

    def heldout_ids(self) -> frozenset[str]:
        """Ids of the items that are never trained: the fifth with the smallest ids, so the choice is stable."""
        ids = sorted(item.id for item in self.items)
        return frozenset(ids[: max(1, round(HELDOUT_SHARE * len(ids)))])

    def split(self, name: str) -> tuple[Item, ...]:
        """The items of `name`, one of `SPLITS`; `seen` and `rephrased` hold the same items."""
        heldout = self.heldout_ids()
        return tuple(item for item in self.items if (item.id in heldout) == (name == "heldout"))

    def question(self, item: Item, split: str, turn: int = 0) -> tuple[str, str]:
        """(phrasing, prompt text) of an item in a split; which phrasing depends on the item's id alone.

        `turn` counts on from there: a number of turns below the number of phrasings gives another question each.
        """
        phrasings = self.rephrased if split == "rephrased" else self.trained
        phrasing = phrasings[(int(item.id, 16) + turn) % len(phrasings)]
        return phrasing, fill(phrasing, item.input)

    def trained_phrasings(self, item: Item) -> tuple[str, ...]:
        """The phrasings an item is trained in, `TRAINED_WAYS` at most; it is asked in the first of them."""
        ways = min(TRAINED_WAYS, len(self.trained))
        return tuple(self.question(item, "seen", turn)[0] for turn in range(ways))

    def training_examples(self) -> list[Example]:
        """Every trained item in its trained phrasings."""
        return [example(phrasing, item) for item in self.split("seen") for phrasing in self.trained_phrasings(item)]

    def validation_examples(self) -> list[Example]:
        """Every trained item in a rephrased phrasing, not the one it is asked in; none where there is but one.

        None of them is a question of the suites, but other items are asked in the same phrasings: what is chosen by the
        loss on them is chosen for these sentences.
        """
        if len(self.rephrased) < 2:
            return []
        return [example(self.question(item, "rephrased", turn=1)[0], item) for item in self.split("seen")]


def fill(phrasing: str, text: str) -> str:
    """Put `text` where the phrasing says; plain replacement, as inputs are full of braces."""
    return phrasing.replace("{input}", text)


def example(phrasing: str, item: Item) -> Example:
    """The item asked and answered in one phrasing."""
    start = phrasing.index("{input}")
    return Example(fill(phrasing, item.input), item.output, (start, start + len(item.input)))


@dataclass(frozen=True)
class PatternSet:
    """Categories by name, in the order of their files."""

    categories: dict[str, Category]

    @property
    def sha256(self) -> str:
        """Fingerprint of all that decides what is trained and asked: items, outputs, phrasings."""
        content = json.dumps([asdict(c) for c in self.categories.values()], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def training_examples(self) -> list[Example]:
        """The training data: of every category, every trained item in its trained phrasings."""
        return [example for category in self.categories.values() for example in category.training_examples()]

    def validation_examples(self) -> list[Example]:
        """See `Category.validation_examples`, of every category."""
        return [example for category in self.categories.values() for example in category.validation_examples()]

    def sample(self, sizes: Mapping[str, int] | int, seed: int = 0) -> PatternSet:
        """At most so many items of each category; one generator per category, so they don't affect each other.

        Stratified: the held-out share is drawn from the category's held-out items, so an item keeps its side.

        Args:
            sizes: items a category, by its name or else its group, all where neither is named; or one for all.
            seed: another seed, another choice.
        """

        def size(category: Category) -> int:
            every = len(category.items)
            if isinstance(sizes, int):
                return sizes
            return sizes.get(category.name, sizes.get(category.group, every))

        return PatternSet({name: _sample(c, size(c), seed) for name, c in self.categories.items()})

    def without_extra(self) -> PatternSet:
        """Without the categories that only the full profile asks for; all of them where nothing else is there."""
        kept = {name: c for name, c in self.categories.items() if not c.profile}
        return PatternSet(kept) if kept else self


def _sample(category: Category, size: int, seed: int) -> Category:
    if len(category.items) <= size:
        return category
    rng = random.Random(f"{seed}:{category.name}")
    heldout = rng.sample(category.split("heldout"), max(1, round(HELDOUT_SHARE * size)))
    chosen = {item.id for item in heldout + rng.sample(category.split("seen"), size - len(heldout))}
    return replace(category, items=tuple(item for item in category.items if item.id in chosen))


def item_id(category: str, text: str) -> str:
    """16 hex digits that name an item across runs and machines."""
    return hashlib.sha256(f"{category}\0{text}".encode()).hexdigest()[:16]
