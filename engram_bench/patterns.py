"""Pattern data: YAML in, validated categories of items out, with their splits and phrasings.

A file is ``name``, ``description``, ``version``, ``examples: [{input, output, category}]`` and, optionally, ``group``
(categories reported together too), ``source`` and ``phrasings: {trained: [...], rephrased: [...]}``. Scalars are read
as they are written: ``404``, ``NO`` and ``2024-01-15`` stay text, so the YAML is composed into nodes and never resolved
into Python types.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from engram_bench.errors import UsageError

SPLITS = ("seen", "rephrased", "heldout")
HELDOUT_SHARE = 0.2
TRAINED = ("{input}", "Complete: {input}", "What belongs to {input} here?")
REPHRASED = ("Continue: {input}", "Answer this: {input}", "Given {input}, what is the answer?")
FILE_FIELDS = {"name", "description", "version", "group", "source", "phrasings", "examples"}
EXAMPLE_FIELDS = {"input", "output", "category"}


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

    def heldout_ids(self) -> frozenset[str]:
        """Ids of the items that are never trained: the fifth with the smallest ids, so the choice is stable."""
        ids = sorted(item.id for item in self.items)
        return frozenset(ids[: max(1, round(HELDOUT_SHARE * len(ids)))])

    def split(self, name: str) -> tuple[Item, ...]:
        """The items of `name`, one of `SPLITS`; `seen` and `rephrased` hold the same items."""
        heldout = self.heldout_ids()
        return tuple(item for item in self.items if (item.id in heldout) == (name == "heldout"))

    def question(self, item: Item, split: str) -> tuple[str, str]:
        """(phrasing, prompt text) of an item in a split; which phrasing depends on the item's id alone."""
        phrasings = self.rephrased if split == "rephrased" else self.trained
        phrasing = phrasings[int(item.id, 16) % len(phrasings)]
        return phrasing, fill(phrasing, item.input)

    def training_examples(self) -> list[Example]:
        """Every trained item in every trained phrasing."""
        return [
            Example(fill(phrasing, item.input), item.output, (start, start + len(item.input)))
            for item in self.split("seen")
            for phrasing in self.trained
            for start in (phrasing.index("{input}"),)
        ]


def fill(phrasing: str, text: str) -> str:
    """Put `text` where the phrasing says; plain replacement, as inputs are full of braces."""
    return phrasing.replace("{input}", text)


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
        """The training data: of every category, every trained item in every trained phrasing."""
        return [example for category in self.categories.values() for example in category.training_examples()]

    def sample(self, per_category: int | None, seed: int = 0) -> PatternSet:
        """At most `per_category` items of each category; one generator per category, so they don't affect each other.

        Stratified: the held-out share is drawn from the category's held-out items, so an item keeps its side.
        """
        if per_category is None:
            return self
        return PatternSet({name: _sample(c, per_category, seed) for name, c in self.categories.items()})


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


def load(path: Path) -> PatternSet:
    """Read a pattern file, or every ``*.yaml`` of a folder in order of name.

    Raises:
        UsageError: all problems of all files, a line each: file, line, what is wrong, how to mend it.
    """
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path}: no pattern file here; put a *.yaml with name and examples in it")
    problems: list[str] = []
    categories: dict[str, Category] = {}
    for file in files:
        for category in _read(file, problems):
            if category.name in categories:
                problems.append(f"{file}: category {category.name!r} is in another file too; merge the two")
            categories[category.name] = category
    if not problems:
        problems = _contradictions(categories.values())
    if problems:
        raise UsageError("\n".join(problems))
    return PatternSet(categories)


def _contradictions(categories: Iterable[Category]) -> list[str]:
    """Inputs that stand in two categories: they would be trained to two answers, or held out here and trained there."""
    first: dict[str, str] = {}
    found = []
    for category in categories:
        for item in category.items:
            other = first.setdefault(item.input, category.name)
            if other != category.name:
                found.append(f"input {item.input!r} is in {other!r} and in {category.name!r}; keep one of the two")
    return found


def _read(file: Path, problems: list[str]) -> list[Category]:
    try:
        text = file.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.CSafeLoader)):
            raise UsageError("YAML aliases (*name) are not allowed; write the value out")
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
        return list(_categories(file, _mapping(file, root, FILE_FIELDS, {"name", "examples"}), problems))
    except OSError as error:
        problems.append(f"{file}: {error.strerror}; check the path")
    except UnicodeDecodeError as error:
        problems.append(f"{file}: not UTF-8 at byte {error.start}; save the file as UTF-8")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(f"{file}:{line}: not valid YAML: {error.problem}; quote the text or mend the indentation")
    except yaml.YAMLError as error:
        problems.append(f"{file}: not valid YAML: {' '.join(str(error).split())}; remove the character")
    except UsageError as error:
        problems.append(str(error) if str(error).startswith(str(file)) else f"{file}: {error}")
    return []


def _mapping(file: Path, node: yaml.Node | None, known: set[str], needed: set[str]) -> dict[str, yaml.Node]:
    """The fields of a mapping node, or a UsageError that names the line."""
    place = f"{file}:{node.start_mark.line + 1}" if node else f"{file}:1"
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{place}: expected fields ({', '.join(sorted(needed))}), found something else")
    fields: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in fields:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            raise UsageError(f"{file}:{key.start_mark.line + 1}: field {name!r} is given twice or is no text; keep one")
        fields[key.value] = value
    if unknown := [str(key) for key in fields if key not in known]:
        raise UsageError(f"{place}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if missing := sorted(needed - fields.keys()):
        raise UsageError(f"{place}: field {missing[0]!r} is missing; add it")
    return fields


def _text(file: Path, node: yaml.Node, name: str) -> str:
    place = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{place}: {name!r} must be text; quote it")
    if not node.value.strip():
        raise UsageError(f"{place}: {name!r} is empty; fill it in or remove the example")
    return str(node.value)


def _name(file: Path, node: yaml.Node) -> str:
    """A category's name: it ends up in test ids, in -k expressions and in tables."""
    text = _text(file, node, "name")
    if not re.fullmatch(r"[\w.-]+", text):
        raise UsageError(f"{file}:{node.start_mark.line + 1}: name {text!r} must be letters, digits, '_', '-' and '.'")
    return text


def _sequence(file: Path, node: yaml.Node, name: str) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise UsageError(f"{file}:{node.start_mark.line + 1}: {name!r} must be a list with at least one entry")
    return list(node.value)


def _phrasings(file: Path, fields: dict[str, yaml.Node]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if "phrasings" not in fields:
        return TRAINED, REPHRASED
    names = {"trained", "rephrased"}
    node = fields["phrasings"]
    lists = {
        name: tuple(_text(file, entry, name) for entry in _sequence(file, value, name))
        for name, value in _mapping(file, node, names, names).items()
    }
    place = f"{file}:{node.start_mark.line + 1}"
    if bad := [p for p in lists["trained"] + lists["rephrased"] if p.count("{input}") != 1]:
        raise UsageError(f"{place}: phrasing {bad[0]!r} must hold {{input}} exactly once")
    if both := set(lists["trained"]) & set(lists["rephrased"]):
        raise UsageError(f"{place}: phrasing {min(both)!r} is both trained and rephrased; keep one")
    return lists["trained"], lists["rephrased"]


def _categories(file: Path, fields: dict[str, yaml.Node], problems: list[str]) -> Iterable[Category]:
    """One category per distinct `category` of the examples (the file's name where an example has none)."""
    name = _name(file, fields["name"])
    source = _text(file, fields["source"], "source") if "source" in fields else "written for this project"
    group = _text(file, fields["group"], "group") if "group" in fields else None
    trained, rephrased = _phrasings(file, fields)
    before = len(problems)
    first_line: dict[tuple[str, str], int] = {}
    items: dict[str, list[Item]] = {}
    for node in _sequence(file, fields["examples"], "examples"):
        try:
            example = _mapping(file, node, EXAMPLE_FIELDS, {"input", "output"})
            text, output = (_text(file, example[key], key) for key in ("input", "output"))
            category = _name(file, example["category"]) if "category" in example else name
        except UsageError as error:
            problems.append(str(error))
            continue
        line = node.start_mark.line + 1
        earlier = first_line.get((category, text))
        if earlier is not None:
            problems.append(f"{file}:{line}: input {text!r} stands on line {earlier} already; keep one of the two")
            continue
        first_line[category, text] = line
        items.setdefault(category, []).append(Item(item_id(category, text), category, text, output))
    for category, members in items.items():
        if len(members) < 2 and len(problems) == before:
            problems.append(f"{file}: category {category!r} has one example; it needs two or more to be split")
        yield Category(category, group or category, source, trained, rephrased, tuple(members))
