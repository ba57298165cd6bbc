"""Reads a file of triples: subjects of an invented world, their relations, and the sentences that ask for them.

``relations: {name: {of, noun, trained, paraphrased, ...}}`` and ``subjects: {name: {kind, aliases, RELATION: value}}``.
Each triple is an item whose input is the relation's noun phrase with the subject in it, "the founder of Brellix".
"""

from __future__ import annotations

from dataclasses import replace

import yaml

from engram_bench.data.items import Applied, Category, Item, Wordings, item_id
from engram_bench.data.nodes import Nodes
from engram_bench.data.wording_nodes import Sentences, frames, wordings

RELATION_WAYS = ("trained", "paraphrased", "mention", "contradicted", "applied")
RELATION = ("of", "noun", *RELATION_WAYS)
LEAST_WORDINGS = 2  # of a relation, trained and paraphrased each


def category(nodes: Nodes, fields: dict[str, yaml.Node], blank: Category) -> Category:
    """The category of all triples of a file.

    Args:
        nodes: the file; problems are reported to it.
        fields: the file's fields: relations, subjects, frames and hops.
        blank: the category without items and wordings.
    """
    sentences = Sentences(nodes)
    asked, trained = _frames(nodes, fields.get("frames"), sentences)
    nouns, kinds, made = dict[str, str](), dict[str, str](), dict[str, Wordings]()
    for name, node in nodes.mapping(fields.get("relations"), "relations").items():
        own = nodes.fields(node, RELATION, RELATION[:4])
        noun, kind = nodes.text(own, "noun") or "{subject}", nodes.text(own, "of") or ""
        if noun.count("{subject}") != 1:
            nodes.problem(node, f"noun {noun!r} of relation {name!r} must contain {{subject}} exactly once")
        found = wordings(nodes, {way: own[way] for way in RELATION_WAYS if way in own}, sentences)
        for way in ("trained", "paraphrased"):
            if way in own and len(getattr(found, way)) < LEAST_WORDINGS:
                nodes.problem(own[way], f"relation {name!r} has one {way} wording; give at least {LEAST_WORDINGS}")
        nouns[name], kinds[name], made[name] = noun, kind, replace(found, combined=asked)
    items = _items(nodes, fields.get("subjects"), nouns, kinds, blank.name)
    hops = _hops(nodes, fields.get("hops"), nouns, sentences)
    return replace(blank, items=tuple(_with_hops(items, hops, nouns)), wordings=made, frames=trained)


def _frames(nodes: Nodes, node: yaml.Node | None, sentences: Sentences) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences over two keys: those asked, and those trained."""
    found = nodes.fields(node, ("combined", "trained"), ("combined", "trained")) if node else {}
    combined, trained = (
        frames(nodes, found[way], way, sentences) if way in found else () for way in ("combined", "trained")
    )
    return combined, trained


def _items(
    nodes: Nodes, node: yaml.Node | None, nouns: dict[str, str], kinds: dict[str, str], category: str
) -> list[Item]:
    found: list[Item] = []
    places: dict[str, str] = {}
    subjects = nodes.mapping(node, "subjects")
    for subject, entry in subjects.items():
        own = nodes.fields(entry, ("kind", "aliases", *nouns), ("kind",))
        kind = nodes.text(own, "kind") or ""
        aliases = tuple(nodes.texts(own["aliases"], "aliases")) if _filled(own.get("aliases")) else ()
        for name in (subject, *aliases):
            other = places.setdefault(name.casefold(), nodes.place(entry))
            if other != nodes.place(entry) or (name in subjects and name != subject):
                nodes.problem(entry, f"{name!r} names another subject, too ({other}); change one")
        for relation in (name for name in own if name in nouns):
            if kinds[relation] != kind:
                nodes.problem(own[relation], f"{relation!r} is a relation of {kinds[relation]!r}, not of {kind!r}")
            value = nodes.text(own, relation)
            if value is None:
                continue
            text = nouns[relation].replace("{subject}", subject)
            place = nodes.place(entry)
            found.append(
                Item(item_id(category, text), category, text, value, (subject, *aliases), relation, place=place)
            )
    return found


def _filled(node: yaml.Node | None) -> bool:
    return node is not None and bool(node.value)


def _hops(
    nodes: Nodes, node: yaml.Node | None, nouns: dict[str, str], sentences: Sentences
) -> list[tuple[str, str, str]]:
    """(first relation, second relation, prompt): the second relation of the first one's value."""
    found = []
    for entry in nodes.entries(node, "hops") if node else ():
        own = nodes.fields(entry, ("first", "second", "prompts"), ("first", "second", "prompts"))
        first, second = nodes.text(own, "first"), nodes.text(own, "second")
        if unknown := [name for name in (first, second) if name not in nouns]:
            nodes.problem(entry, f"hop over {unknown[0]!r}, which is no relation of this file")
        for prompt, place in nodes.texts(own["prompts"], "prompts").items() if "prompts" in own else ():
            sentences.add(prompt, "hop", place)
            found.append((first or "", second or "", prompt.replace("{subject}", "{name}")))
    return found


def _with_hops(items: list[Item], hops: list[tuple[str, str, str]], nouns: dict[str, str]) -> list[Item]:
    """Give each triple the questions that go on from its value to another triple."""
    values = {(item.names[0], item.relation): item for item in items}
    found = []
    for item in items:
        on = [
            Applied(prompt, values[item.output, second].output, needs=values[item.output, second].input)
            for first, second, prompt in hops
            if first == item.relation and (item.output, second) in values
        ]
        found.append(replace(item, applied=tuple(on)))
    return found
