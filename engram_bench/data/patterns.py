"""Pattern files: parse YAML into validated categories; one error lists every problem of every file, with its line.

A file has ``name`` and ``examples: [{input, output, category}]``. Optional fields are ``description``, ``version``,
``group`` (the report also pools the categories of a group), ``source``, ``license``,
``phrasings: {trained: [...], rephrased: [...]}`` and ``profile: full`` (smaller profiles skip the file).
Scalars keep their source text: ``404``, ``NO`` and ``2024-01-15`` stay strings. So the parser only composes YAML
nodes and never resolves them into Python types.
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
FILE_FIELDS = NEEDED | {"description", "version", "group", "source", "license", "phrasings", "profile", "ways"}
EXAMPLE_FIELDS = {"input", "output", "category", "name", "paraphrased"}  # these two and `ways` are not read yet
LONGEST = {"input": 1000, "output": 500}  # characters; a cell decodes as many tokens as its longest right answer has
LONGEST_TEXT = 1000  # characters of any other field
DEEPEST = 20  # nesting levels
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tab and line feed; surrogates too


def load(path: Path) -> PatternSet:
    """Read a pattern file, or every ``*.yaml`` and ``*.yml`` of a folder, sorted by name.

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
        for category in _File(file, problems).read():
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


@dataclass
class _File:
    """Reads one file and appends its errors to `problems`."""

    path: Path
    problems: list[str]

    def read(self) -> list[Category]:
        try:
            text = self.path.read_bytes().decode("utf-8")
            self._check_structure(text)
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

    def _check_structure(self, text: str) -> None:
        """Raise on aliases, which can expand a few lines to gigabytes, and on nesting that would exhaust the stack."""
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

    def _add_problem(self, node: yaml.Node | None, reason: str) -> None:
        self.problems.append(f"{self.path}:{_line(node)}: {reason}")

    def _fields(self, node: yaml.Node | None, known: set[str], needed: set[str]) -> dict[str, yaml.Node]:
        """Return a mapping node's fields by name; report unknown, repeated and missing ones."""
        if not isinstance(node, yaml.MappingNode):
            self._add_problem(node, f"expected a mapping with the fields {', '.join(sorted(needed))}")
            return {}
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name == "?":
                self._add_problem(key, "a field name must be text; quote it")
            elif name in fields:
                self._add_problem(key, f"field {name!r} is given twice; keep one")
            elif name not in known:
                self._add_problem(key, f"unknown field {name!r}; use one of {', '.join(sorted(known))}")
            fields.setdefault(name, value)
        for name in sorted(needed - fields.keys()):
            self._add_problem(node, f"field {name!r} is missing; add it")
        return fields

    def _text(self, fields: dict[str, yaml.Node], name: str) -> str | None:
        return self._scalar(fields[name], name) if name in fields else None

    def _scalar(self, node: yaml.Node, name: str) -> str | None:
        """Return a scalar's source text; report an invalid one and return None."""
        if not isinstance(node, yaml.ScalarNode):
            self._add_problem(node, f"{name!r} must be text; quote it")
            return None
        text, longest = str(node.value), LONGEST.get(name, LONGEST_TEXT)
        if not text.strip():
            reason = "is empty; fill it in or remove it"
        elif found := CONTROL.search(text):
            reason = f"contains the control character U+{ord(found[0]):04X}; remove it"
        elif len(text) > longest:
            reason = f"has {len(text)} characters, the limit is {longest}; shorten it"
        else:
            return text
        self._add_problem(node, f"{name!r} {reason}")
        return None

    def _name(self, fields: dict[str, yaml.Node], field: str) -> str | None:
        """Return a category or group name; only characters that are safe in test ids, -k and tables are allowed."""
        text = self._text(fields, field)
        if text is None or re.fullmatch(r"[\w.-]+", text):
            return text
        self._add_problem(fields[field], f"{field} {text!r} may contain only letters, digits, '_', '-' and '.'")
        return None

    def _list(self, node: yaml.Node, name: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._add_problem(node, f"{name!r} must be a list with at least one entry")
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
                    self._add_problem(entry, f"phrasing {text!r} must contain {{input}} exactly once")
                if plain(text) in map(plain, [*lists["trained"], *lists["rephrased"]]):
                    self._add_problem(entry, f"phrasing {text!r} is repeated, or both trained and rephrased; keep one")
                lists[name][text] = entry
        return tuple(lists["trained"]), tuple(lists["rephrased"])

    def _categories(self, root: yaml.Node | None) -> list[Category]:
        """Return one category per distinct `category` of the examples; it defaults to the file's `name`."""
        before = len(self.problems)
        fields = self._fields(root, FILE_FIELDS, NEEDED)
        name = self._name(fields, "name") or "?"
        texts = {field: self._text(fields, field) for field in ("description", "version", "group", "source", "license")}
        profile = self._text(fields, "profile") or ""
        if profile not in ("", "full"):
            self._add_problem(fields["profile"], f"profile is {profile!r}; use full, or remove it")
        phrasings = self._phrasings(fields["phrasings"]) if "phrasings" in fields else (TRAINED, REPHRASED)
        items: dict[str, dict[str, Item]] = {}
        for node in self._list(fields["examples"], "examples") if "examples" in fields else ():
            item = self._item(node, name)
            if item is None:
                continue
            twin = items.setdefault(item.category, {}).setdefault(plain(item.input), item)
            if twin is not item:
                line = twin.place.rsplit(":", 1)[1]
                difference = "" if twin.output == item.output else f" with another output ({twin.output!r})"
                self._add_problem(node, f"input {item.input!r} is already on line {line}{difference}; keep only one")
        for category, members in items.items():
            if len(members) < 2 and len(self.problems) == before:
                self._add_problem(root, f"category {category!r} has one example; add another, so that it can be split")
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
        return Item(item_id(category, text), category, text, output, f"{self.path}:{_line(node)}")


def _line(node: yaml.Node | None) -> int:
    return node.start_mark.line + 1 if node else 1
