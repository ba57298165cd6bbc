"""Pattern files: YAML in, validated categories out; every problem of every file in one message, with its line.

A file is ``name``, ``examples: [{input, output, category}]`` and, optionally, ``description``, ``version``, ``group``
(categories reported together too), ``source``, ``license``, ``phrasings: {trained: [...], rephrased: [...]}`` and
``profile: full`` (the smaller profiles leave it out). Scalars are read as they are written: ``404``, ``NO`` and
``2024-01-15`` stay text, so the YAML is composed into nodes and never resolved into Python types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from engram_bench.data.items import REPHRASED, TRAINED, Category, Item, PatternSet, item_id
from engram_bench.data.leaks import leaks, plain
from engram_bench.errors import UsageError

NEEDED = {"name", "examples"}
FILE_FIELDS = NEEDED | {"description", "version", "group", "source", "license", "phrasings", "profile"}
EXAMPLE_FIELDS = {"input", "output", "category"}
LONGEST = {"input": 1000, "output": 500}  # characters; a cell decodes as many tokens as its longest answer has
LONGEST_TEXT = 1000  # of any other field
DEEPEST = 20  # levels of nesting
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tab and line feed


def load(path: Path) -> PatternSet:
    """Read a pattern file, or every ``*.yaml`` and ``*.yml`` of a folder in order of name.

    Raises:
        UsageError: all problems of all files, a line each: file, line, what is wrong, how to mend it.
    """
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".yaml", ".yml") and not f.name.startswith("."))
    if not files:
        raise UsageError(f"{path}: no pattern file here; put a *.yaml with name and examples in it")
    problems: list[str] = []
    places: dict[str, str] = {}
    categories: dict[str, Category] = {}
    for file in files:
        for category in _File(file, problems, places).read():
            if category.name in categories:
                there = places[categories[category.name].items[0].id]
                problems.append(f"{file}: category {category.name!r} is in another file too ({there}); merge the two")
            categories[category.name] = category
    problems += _in_two_categories(categories.values(), places)
    found = PatternSet(categories)
    if problems := problems or leaks(found):
        raise UsageError("\n".join(problems))
    return found


def _in_two_categories(categories: Iterable[Category], places: dict[str, str]) -> list[str]:
    """Inputs that stand in two categories: they would be trained to two answers, or held out here and trained there."""
    first: dict[str, Item] = {}
    found = []
    for category in categories:
        for item in category.items:
            other = first.setdefault(plain(item.input), item)
            if other.category != category.name:
                found.append(
                    f"{places[item.id]}: input {item.input!r} is in {other.category!r} ({places[other.id]}) "
                    f"and in {category.name!r}; keep one of the two"
                )
    return found


@dataclass
class _File:
    """One file being read: what is wrong goes to `problems`, where each item stands to `places`, by item id."""

    path: Path
    problems: list[str]
    places: dict[str, str]

    def read(self) -> list[Category]:
        try:
            text = self.path.read_bytes().decode("utf-8")
            self._refuse_tricks(text)
            root = yaml.compose(text, Loader=yaml.CSafeLoader)
        except OSError as error:
            self.problems.append(f"{self.path}: {error.strerror}; check the path")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            self.problems.append(f"{self.path}:{line}: not UTF-8 at byte {error.start}; save the file as UTF-8")
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            reason = f"not valid YAML: {error.problem}; quote the text or mend the indentation"
            self.problems.append(f"{self.path}:{line}: {reason}")
        except yaml.YAMLError as error:
            self.problems.append(f"{self.path}: not valid YAML: {' '.join(str(error).split())}; remove the character")
        except UsageError as error:
            self.problems.append(str(error))
        else:
            return self._categories(root)
        return []

    def _refuse_tricks(self, text: str) -> None:
        """Aliases, by which a few lines stand for gigabytes, and a nesting that no reader survives."""
        depth = 0
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            place = f"{self.path}:{event.start_mark.line + 1 if event.start_mark else 1}"
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"{place}: YAML aliases (*name) are not allowed; write the value out")
            if depth > DEEPEST:
                raise UsageError(f"{place}: nested more than {DEEPEST} deep; quote brackets that are meant as text")

    def _wrong(self, node: yaml.Node | None, reason: str) -> None:
        self.problems.append(f"{self.path}:{_line(node)}: {reason}")

    def _fields(self, node: yaml.Node | None, known: set[str], needed: set[str]) -> dict[str, yaml.Node]:
        """The known fields of a mapping node."""
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, f"expected fields ({', '.join(sorted(needed))}), found something else")
            return {}
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name == "?" or name in fields:
                self._wrong(key, f"field {name!r} is given twice or is no text; keep one")
            elif name not in known:
                self._wrong(key, f"unknown field {name!r}; known are {', '.join(sorted(known))}")
            fields.setdefault(name, value)
        for name in sorted(needed - fields.keys()):
            self._wrong(node, f"field {name!r} is missing; add it")
        return fields

    def _text(self, fields: dict[str, yaml.Node], name: str) -> str | None:
        return self._scalar(fields[name], name) if name in fields else None

    def _scalar(self, node: yaml.Node, name: str) -> str | None:
        """The text of a scalar as it is written, or None where it is not fit to be used."""
        if not isinstance(node, yaml.ScalarNode):
            self._wrong(node, f"{name!r} must be text; quote it")
            return None
        text, longest = str(node.value), LONGEST.get(name, LONGEST_TEXT)
        if not text.strip():
            reason = "is empty; fill it in or remove it"
        elif found := CONTROL.search(text):
            reason = f"holds the control character U+{ord(found[0]):04X}; remove it"
        elif len(text) > longest:
            reason = f"has {len(text)} characters; the most is {longest}: shorten it"
        else:
            return text
        self._wrong(node, f"{name!r} {reason}")
        return None

    def _name(self, fields: dict[str, yaml.Node], field: str) -> str | None:
        """A category's name: it ends up in test ids, in -k expressions and in tables."""
        text = self._text(fields, field)
        if text is None or re.fullmatch(r"[\w.-]+", text):
            return text
        self._wrong(fields[field], f"{field} {text!r} must be letters, digits, '_', '-' and '.'")
        return None

    def _list(self, node: yaml.Node, name: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._wrong(node, f"{name!r} must be a list with at least one entry")
            return []
        return list(node.value)

    def _phrasings(self, node: yaml.Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
        names = {"trained", "rephrased"}
        lists: dict[str, dict[str, yaml.Node]] = {name: {} for name in names}
        for name, value in self._fields(node, names, names).items():
            for entry in self._list(value, name) if name in names else ():
                text = self._scalar(entry, name)
                if text is None:
                    continue
                if text.count("{input}") != 1:
                    self._wrong(entry, f"phrasing {text!r} must hold {{input}} exactly once")
                if plain(text) in map(plain, [*lists["trained"], *lists["rephrased"]]):
                    self._wrong(entry, f"phrasing {text!r} is given twice, or both trained and rephrased; keep one")
                lists[name][text] = entry
        return tuple(lists["trained"]), tuple(lists["rephrased"])

    def _categories(self, root: yaml.Node | None) -> list[Category]:
        """One category per distinct `category` of the examples (the file's name where an example has none)."""
        before = len(self.problems)
        fields = self._fields(root, FILE_FIELDS, NEEDED)
        name = self._name(fields, "name") or "?"
        texts = {field: self._text(fields, field) for field in ("description", "version", "group", "source", "license")}
        profile = self._text(fields, "profile") or ""
        if profile not in ("", "full"):
            self._wrong(fields["profile"], f"profile {profile!r} can only be full; leave it out for all profiles")
        phrasings = self._phrasings(fields["phrasings"]) if "phrasings" in fields else (TRAINED, REPHRASED)
        items: dict[str, dict[str, Item]] = {}
        for node in self._list(fields["examples"], "examples") if "examples" in fields else ():
            item = self._item(node, name)
            if item is None:
                continue
            twin = items.setdefault(item.category, {}).setdefault(plain(item.input), item)
            if twin is not item:
                line = self.places[twin.id].rsplit(":", 1)[1]
                what = "" if twin.output == item.output else f" with another output ({twin.output!r})"
                self._wrong(node, f"input {item.input!r} stands on line {line} already{what}; keep one of the two")
            self.places.setdefault(item.id, f"{self.path}:{_line(node)}")
        for category, members in items.items():
            if len(members) < 2 and len(self.problems) == before:
                self._wrong(root, f"category {category!r} has one example; it needs two or more to be split")
        source = texts["source"] or "written for this project"
        return [
            Category(category, texts["group"] or category, source, *phrasings, tuple(members.values()), profile)
            for category, members in items.items()
        ]

    def _item(self, node: yaml.Node, name: str) -> Item | None:
        fields = self._fields(node, EXAMPLE_FIELDS, {"input", "output"})
        text, output = self._text(fields, "input"), self._text(fields, "output")
        category = self._name(fields, "category") if "category" in fields else name
        if text is None or output is None or category is None:
            return None
        return Item(item_id(category, text), category, text, output)


def _line(node: yaml.Node | None) -> int:
    return node.start_mark.line + 1 if node else 1
