"""Reads the sentences of a category's or a relation's ways of asking, and checks their placeholders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from engram_bench.data.items import Applied, Wordings
from engram_bench.data.nodes import Nodes

KEY = re.compile(r"\{(?:input|name|subject)\}")  # the key, by any of its names
NEEDED = {"contradicted": ("{other}",), "combined": ("{first}", "{second}"), "frames": ("{first}", "{second}")}
KEYLESS = ("combined", "neighbour", "frames")  # ways whose sentences hold no key of a single item
WORLD_NAMES = {"{subject}": "{name}", "{value}": "{output}"}  # how a file of triples calls them


class Sentences:
    """All sentences of a category: none may be given twice, in whatever ways, whatever its key is called."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes, self._seen = nodes, dict[str, tuple[str, int]]()

    def add(self, text: str, way: str, node: yaml.Node) -> None:
        """Note a sentence of a way; report one that another way, or the same, has already."""
        plain = KEY.sub("{}", " ".join(text.split()))
        other, line = self._seen.setdefault(plain, (way, node.start_mark.line + 1))
        if line != node.start_mark.line + 1:
            self._nodes.problem(node, f"{way} sentence {text!r} is already on line {line} ({other}); change one")


def wordings(nodes: Nodes, lists: Mapping[str, yaml.Node], sentences: Sentences) -> Wordings:
    """The sentences of some ways, by the name of the way; problems are reported to `nodes`."""
    found: dict[str, Any] = {
        way: _texts(nodes, way, node, sentences) for way, node in lists.items() if way != "applied"
    }
    applied = _applied(nodes, lists["applied"], sentences) if "applied" in lists else ()
    return Wordings(**found, applied=applied)


def frames(nodes: Nodes, node: yaml.Node, way: str, sentences: Sentences) -> tuple[str, ...]:
    """Sentences over two keys, {first} and {second}."""
    return _texts(nodes, way, node, sentences, "frames")


def _texts(nodes: Nodes, way: str, node: yaml.Node, sentences: Sentences, rule: str = "") -> tuple[str, ...]:
    found = []
    for text, entry in nodes.texts(node, way).items():
        needed = NEEDED.get(rule or way, ())
        if missing := [name for name in needed if name not in text]:
            nodes.problem(entry, f"{way} sentence {text!r} must contain {missing[0]}")
        if (rule or way) not in KEYLESS and not KEY.search(text):
            nodes.problem(entry, f"{way} sentence {text!r} must contain its key: {{input}}, {{name}} or {{subject}}")
        sentences.add(text, way, entry)
        found.append(_renamed(text))
    return tuple(found)


def _applied(nodes: Nodes, node: yaml.Node, sentences: Sentences) -> tuple[Applied, ...]:
    found = []
    for entry in nodes.entries(node, "applied"):
        fields = nodes.fields(entry, ("prompt", "answer"), ("prompt", "answer"))
        prompt, answer = nodes.text(fields, "prompt"), nodes.text(fields, "answer")
        if prompt is None or answer is None:
            continue
        if not KEY.search(prompt):
            nodes.problem(
                entry, f"applied sentence {prompt!r} must contain its key: {{input}}, {{name}} or {{subject}}"
            )
        sentences.add(prompt, "applied", entry)
        found.append(Applied(_renamed(prompt), _renamed(answer)))
    return tuple(found)


def _renamed(text: str) -> str:
    for name, ours in WORLD_NAMES.items():
        text = text.replace(name, ours)
    return text
