"""Reads a YAML file as nodes with line numbers, and reports every problem with its line.

Scalars keep their source text: ``404``, ``NO`` and ``2024-01-15`` stay strings. So the parser only composes YAML nodes
and never resolves them into Python types.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from engram_bench.errors import UsageError

LONGEST = {"input": 1000, "output": 500}  # characters; a cell decodes as many tokens as its longest right answer has
LONGEST_TEXT = 1000  # characters of any other field
DEEPEST = 20  # nesting levels
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tab and line feed; surrogates too


def unfit(text: str, name: str) -> str | None:
    """Why a text cannot be a field of this name, and how to mend it; None if it can."""
    longest = LONGEST.get(name, LONGEST_TEXT)
    if not text.strip():
        return "is empty; fill it in or remove it"
    if found := CONTROL.search(text):
        return f"contains the control character U+{ord(found[0]):04X}; remove it"
    if len(text) > longest:
        return f"has {len(text)} characters, the limit is {longest}; shorten it"
    return None


@dataclass
class Nodes:
    """One file. Its methods append what is wrong to `problems`, one line each, and go on."""

    path: Path
    problems: list[str]

    def root(self) -> yaml.Node | None:
        """The file's content; None if it cannot be read, which is reported."""
        try:
            text = self.path.read_bytes().decode("utf-8")
            self._check_structure(text)
            return yaml.compose(text, Loader=yaml.CSafeLoader)
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
        return None

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

    def problem(self, node: yaml.Node | None, reason: str) -> None:
        """Report what is wrong at a node, and how to mend it."""
        self.problems.append(f"{self.path}:{line(node)}: {reason}")

    def fields(self, node: yaml.Node | None, known: Collection[str], needed: Collection[str]) -> dict[str, yaml.Node]:
        """Return a mapping node's fields by name; report unknown, repeated and missing ones."""
        if not isinstance(node, yaml.MappingNode):
            self.problem(node, f"expected a mapping with the fields {', '.join(sorted(needed))}")
            return {}
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name == "?":
                self.problem(key, "a field name must be text; quote it")
            elif name in fields:
                self.problem(key, f"field {name!r} is given twice; keep one")
            elif name not in known:
                self.problem(key, f"unknown field {name!r}; use one of {', '.join(sorted(known))}")
            fields.setdefault(name, value)
        for name in sorted(set(needed) - fields.keys()):
            self.problem(node, f"field {name!r} is missing; add it")
        return fields

    def text(self, fields: dict[str, yaml.Node], name: str) -> str | None:
        """A field's text; None if it is missing or invalid."""
        return self.scalar(fields[name], name) if name in fields else None

    def scalar(self, node: yaml.Node, name: str) -> str | None:
        """Return a scalar's source text; report an invalid one and return None."""
        if not isinstance(node, yaml.ScalarNode):
            self.problem(node, f"{name!r} must be text; quote it")
            return None
        text = str(node.value)
        if reason := unfit(text, name):
            self.problem(node, f"{name!r} {reason}")
            return None
        return text

    def name(self, fields: dict[str, yaml.Node], field: str) -> str | None:
        """Return a category or group name; only characters that are safe in test ids, -k and tables are allowed."""
        text = self.text(fields, field)
        if text is None or re.fullmatch(r"[\w.-]+", text):
            return text
        self.problem(fields[field], f"{field} {text!r} may contain only letters, digits, '_', '-' and '.'")
        return None

    def entries(self, node: yaml.Node, name: str) -> list[yaml.Node]:
        """The entries of a list node; report anything else and an empty list."""
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.problem(node, f"{name!r} must be a list with at least one entry")
            return []
        return list(node.value)

    def texts(self, node: yaml.Node, name: str) -> dict[str, yaml.Node]:
        """The texts of a list node, each with its own node; report a text that is given twice."""
        return self._distinct([(entry, entry) for entry in self.entries(node, name)], name)

    def mapping(self, node: yaml.Node | None, name: str) -> dict[str, yaml.Node]:
        """The entries of a mapping whose keys are texts of the user's; report a key that is given twice."""
        if not isinstance(node, yaml.MappingNode) or not node.value:
            self.problem(node, f"{name!r} must be a mapping with at least one entry")
            return {}
        return self._distinct(node.value, name)

    def _distinct(self, entries: Iterable[tuple[yaml.Node, yaml.Node]], name: str) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        for key, value in entries:
            text = self.scalar(key, name)
            if text is None:
                continue
            if text in found:
                self.problem(key, f"{text!r} of {name} is given twice; keep one")
            found.setdefault(text, value)
        return found

    def place(self, node: yaml.Node | None) -> str:
        """The "file:line" of a node."""
        return f"{self.path}:{line(node)}"


def line(node: yaml.Node | None) -> int:
    """The line of a node, from 1."""
    return node.start_mark.line + 1 if node else 1
