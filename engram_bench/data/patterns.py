"""Pattern files: parse YAML into validated categories; one error lists every problem of every file, with its line.

A file has ``name`` and ``examples: [{input, output, category}]``. Optional fields are ``description``, ``version``,
``group`` (the report also pools the categories of a group), ``source``, ``license``,
``phrasings: {trained: [...], rephrased: [...]}``, ``ways: {paraphrased: [...], mention: [...], ...}`` (see
`items.Wordings`), ``profile: full`` (smaller profiles skip the file) and ``heldout: none`` (every item is trained). An
example may have a ``name``, which is its input in plain words, and ``paraphrased`` questions of its own. A file of
triples has ``relations`` and ``subjects`` instead of ``examples``, see `triples`. A table of facts (see `tables`) is a
category, too, named after the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import yaml

from engram_bench.data import tables, triples
from engram_bench.data.items import REPHRASED, TRAINED, Category, Item, PatternSet, Wordings, item_id
from engram_bench.data.leaks import leaks, plain
from engram_bench.data.nodes import Nodes
from engram_bench.data.wording_nodes import Sentences, wordings
from engram_bench.errors import UsageError

DESCRIBED = ("name", "description", "version", "group", "source", "license", "phrasings", "profile", "heldout")
EXAMPLES = (*DESCRIBED, "examples", "ways")
TRIPLES = (*DESCRIBED, "placeholders", "relations", "frames", "hops", "subjects")  # placeholders are for readers
WAYS = ("trained", "paraphrased", "mention", "contradicted", "applied", "combined", "neighbour")


def load(path: Path) -> PatternSet:
    """Read a pattern file, a table of facts, or every ``*.yaml`` and ``*.yml`` of a folder, sorted by name.

    Raises:
        UsageError: lists all problems of all files, one per line: file, line, what is wrong, how to mend it.
    """
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".yaml", ".yml") and not f.name.startswith("."))
    if not files:
        raise UsageError(f"{path}: no pattern file in this folder; add a *.yaml file with name and examples")
    problems: list[str] = []
    categories: dict[str, Category] = {}
    for file in files:
        of_facts = file.suffix.lower() in tables.SUFFIXES
        for category in [_of_facts(file)] if of_facts else _read(Nodes(file, problems)):
            if category.name in categories:
                there = categories[category.name].items[0].place
                problems.append(f"{file}: category {category.name!r} is also in {there}; merge the two files")
            categories[category.name] = category
    problems += _repeated_across_categories(categories.values())
    found = PatternSet(categories)
    if problems := problems or leaks(found):
        raise UsageError("\n".join(problems))
    return found


def _repeated_across_categories(categories: Iterable[Category]) -> list[str]:
    """Report inputs that occur in two categories: such an input may be held out in one and trained in the other."""
    first: dict[str, Item] = {}
    found = []
    for category in categories:
        for item in category.items:
            other = first.setdefault(plain(item.input), item)
            if other.category != category.name:
                found.append(
                    f"{item.place}: input {item.input!r} is in {other.category!r} ({other.place}) "
                    f"and in {category.name!r}; keep only one"
                )
    return found


def _of_facts(file: Path) -> Category:
    """A table's facts, all of them trained, in the phrasings of a category without its own."""
    name = re.sub(r"[^\w.-]+", "_", file.stem).strip(".") or "facts"
    items = [Item(item_id(name, f.key), name, f.key, f.value, place=f.place) for f in tables.read(file)[0]]
    return Category(name, name, file.name, TRAINED, REPHRASED, tuple(items), holds_out=False)


def _read(nodes: Nodes) -> list[Category]:
    """One category per distinct `category` of the examples, which defaults to the file's `name`; or that of triples."""
    before = len(nodes.problems)
    root = nodes.root()
    if len(nodes.problems) > before:
        return []
    named = [key.value for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    of_triples = "relations" in named
    needed = ("name", "relations", "subjects") if of_triples else ("name", "examples")
    fields = nodes.fields(root, TRIPLES if of_triples else EXAMPLES, needed)
    name = nodes.name(fields, "name") or "?"
    texts = {field: nodes.text(fields, field) for field in ("description", "version", "group", "source", "license")}
    profile = nodes.text(fields, "profile") or ""
    if profile not in ("", "full"):
        nodes.problem(fields["profile"], f"profile is {profile!r}; use full, or remove it")
    heldout = nodes.text(fields, "heldout") or ""
    if heldout not in ("", "none"):
        nodes.problem(fields["heldout"], f"heldout is {heldout!r}; use none, or remove it to hold out a fifth")
    phrasings = _phrasings(nodes, fields["phrasings"]) if "phrasings" in fields else (TRAINED, REPHRASED)
    source = texts["source"] or "written for this project"
    blank = Category(name, texts["group"] or name, source, *phrasings, (), profile, holds_out=not heldout)
    if of_triples:
        return [triples.category(nodes, fields, blank)]
    by_category = _examples(nodes, fields, name)
    for category, members in by_category.items():
        if len(members) < 2 and len(nodes.problems) == before:
            nodes.problem(root, f"category {category!r} has one example; add another, so that it can be split")
    made = {"": _ways(nodes, fields["ways"], phrasings)} if "ways" in fields else {}
    return [
        replace(blank, name=category, group=texts["group"] or category, items=tuple(members), wordings=made)
        for category, members in by_category.items()
    ]


def _phrasings(nodes: Nodes, node: yaml.Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = ("trained", "rephrased")
    lists: dict[str, dict[str, yaml.Node]] = {name: {} for name in names}
    for name, value in nodes.fields(node, names, names).items():
        for entry in nodes.entries(value, name) if name in names else ():
            text = nodes.scalar(entry, name)
            if text is None:
                continue
            if text.count("{input}") != 1:
                nodes.problem(entry, f"phrasing {text!r} must contain {{input}} exactly once")
            if plain(text) in map(plain, [*lists["trained"], *lists["rephrased"]]):
                nodes.problem(entry, f"phrasing {text!r} is repeated, or both trained and rephrased; keep one")
            lists[name][text] = entry
    return tuple(lists["trained"]), tuple(lists["rephrased"])


def _ways(nodes: Nodes, node: yaml.Node, phrasings: tuple[tuple[str, ...], tuple[str, ...]]) -> Wordings:
    sentences = Sentences(nodes)
    for way, texts in zip(("phrasings trained", "phrasings rephrased"), phrasings, strict=True):
        for text in texts:
            sentences.add(text, way, node)
    return wordings(nodes, nodes.fields(node, WAYS, ()), sentences)


def _examples(nodes: Nodes, fields: dict[str, yaml.Node], name: str) -> dict[str, list[Item]]:
    """The items by category; report inputs that are given twice."""
    found: dict[str, dict[str, Item]] = {}
    for node in nodes.entries(fields["examples"], "examples") if "examples" in fields else ():
        item = _item(nodes, node, name)
        if item is None:
            continue
        twin = found.setdefault(item.category, {}).setdefault(plain(item.input), item)
        if twin is not item:
            line = twin.place.rsplit(":", 1)[1]
            difference = "" if twin.output == item.output else f" with another output ({twin.output!r})"
            nodes.problem(node, f"input {item.input!r} is already on line {line}{difference}; keep only one")
    return {category: list(members.values()) for category, members in found.items()}


def _item(nodes: Nodes, node: yaml.Node, name: str) -> Item | None:
    fields = nodes.fields(node, ("input", "output", "category", "name", "paraphrased"), ("input", "output"))
    text, output, called = (nodes.text(fields, field) for field in ("input", "output", "name"))
    own = tuple(nodes.texts(fields["paraphrased"], "paraphrased")) if "paraphrased" in fields else ()
    category = nodes.name(fields, "category") if "category" in fields else name
    if text is None or output is None or category is None:
        return None
    names = (called,) if called else ()
    return Item(item_id(category, text), category, text, output, names, paraphrased=own, place=nodes.place(node))
