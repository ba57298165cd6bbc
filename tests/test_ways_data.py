"""The ways of asking in the pattern files: enough of each, and no sentence or key where it must not be.

The files are read as plain YAML, so these tests hold whatever the loader makes of the fields.
"""

import re
from collections import Counter

import pytest
import yaml

from engram_bench import shipped


def plain(text):
    return " ".join(text.casefold().split())


FILES = {
    file.stem: yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    for file in sorted(shipped.PATTERNS.glob("*.yaml"))
    if file.stem != "world"  # see test_world.py
}
LOOKUPS = [name for name, file in FILES.items() if file["group"] == "lookups"]
CORE = [name for name, file in FILES.items() if file["group"] == "core"]
INPUTS = {plain(example["input"]): example["input"] for file in FILES.values() for example in file["examples"]}
LEAST = {"trained": 5, "mention": 3, "contradicted": 3, "applied": 3, "combined": 3, "neighbour": 10}
PLACEHOLDERS = ("input", "name", "other", "a", "b", "output", "first", "second")


def prompts(name, way):
    """The prompts of one way of asking; an entry of `applied` has its answer beside it."""
    entries = FILES[name]["ways"].get(way, [])
    return [entry["prompt"] if isinstance(entry, dict) else entry for entry in entries]


def placeholders(text):
    return Counter({found: text.count(f"{{{found}}}") for found in PLACEHOLDERS if f"{{{found}}}" in text})


def held(text, inputs=INPUTS):
    """Inputs of items that stand in `text`, whatever the case and the white space."""
    whole = plain(text)
    return [key for folded, key in inputs.items() if folded in whole]


def as_words(answer, text):
    """Whether an answer stands in a text to the letter, as whole words."""
    return re.search(rf"(?<!\w)(?:{re.escape(answer)})(?!\w)", text) is not None


@pytest.mark.parametrize("name", FILES)
def test_every_category_has_enough_of_each_way(name):
    assert {way: len(prompts(name, way)) for way in LEAST if len(prompts(name, way)) < LEAST[way]} == {}
    assert set(FILES[name]["ways"]) - LEAST.keys() == ({"paraphrased"} if name in LOOKUPS else set())


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups_are_paraphrased_over_their_plain_words(name):
    templates = prompts(name, "paraphrased")
    assert len(templates) >= 6
    assert any(text == text.lower() and text[0].isalpha() for text in templates)
    assert [text for text in templates if placeholders(text) != {"name": 1}] == []
    assert sum("{name}" in text for text in prompts(name, "trained")) >= 3
    for example in FILES[name]["examples"]:
        assert set(example) == {"input", "name", "output"}
        asked = [text.replace("{name}", example["name"]) for text in templates]
        assert [text for text in asked if held(text, {plain(example["input"]): example["input"]})] == []


def test_plain_words_name_one_item_of_their_category():
    for name in LOOKUPS:
        names = [plain(example["name"]) for example in FILES[name]["examples"]]
        assert len(set(names)) == len(names), name


@pytest.mark.parametrize("name", CORE)
def test_core_items_are_each_asked_in_other_words(name):
    """One paraphrase for each item, unlike all others; it holds no key, and does not give its answer away."""
    examples = FILES[name]["examples"]
    asked = [text for example in examples for text in example["paraphrased"]]
    assert len(examples) >= 200
    assert all(len(example["paraphrased"]) == 1 for example in examples)
    assert len(set(map(plain, asked))) == len(asked)
    assert [(text, held(text)) for text in asked if held(text)] == []
    assert [text for text in asked if placeholders(text)] == []
    given = [(e["output"], e["paraphrased"]) for e in examples if as_words(e["output"], e["paraphrased"][0])]
    assert given == []


@pytest.mark.parametrize("name", ["error_fixes", "formats"])
def test_paraphrases_beside_a_derived_file_are_for_its_items(name):
    asked = yaml.load((shipped.PATTERNS / "ways" / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    assert asked["paraphrased"].keys() == {example["input"] for example in FILES[name]["examples"]}


@pytest.mark.parametrize("name", FILES)
def test_placeholders_are_those_of_the_way(name):
    keys = {"input", "name"} if name in LOOKUPS else {"input"}
    for way in ("trained", "mention"):
        found = [placeholders(text) for text in prompts(name, way)]
        assert all(sum(each.values()) in (1, 2) and len(each) == 1 and each.keys() <= keys for each in found), way
    for text in prompts(name, "contradicted"):
        assert placeholders(text)["other"] == 1
        assert placeholders(text).keys() & keys
        assert placeholders(text).keys() <= keys | {"other"}
    for entry in FILES[name]["ways"]["applied"]:
        found = placeholders(entry["prompt"])
        assert entry.keys() == {"prompt", "answer"}
        assert placeholders(entry["answer"]) == {"output": 1}
        assert len(found.keys() & keys) == 1
        assert found.keys() - keys in (set(), {"a", "b"})
    assert all(placeholders(text) == {"first": 1, "second": 1} for text in prompts(name, "combined"))
    assert all(not placeholders(text) for text in prompts(name, "neighbour"))


@pytest.mark.parametrize("name", FILES)
def test_no_sentence_is_asked_in_two_ways(name):
    """Alike also where one has the input and another the plain words in the same place."""
    file = FILES[name]
    every = [text for way in file["ways"] for text in prompts(name, way)]
    every += [text for kind in file["phrasings"].values() for text in kind]
    every += [text for example in file["examples"] for text in example.get("paraphrased", ())]
    alike = Counter(re.sub(r"\{(input|name)\}", "{}", plain(text)) for text in every)
    assert [text for text, times in alike.items() if times > 1] == []


def test_neighbours_hold_no_key_of_any_category():
    every = [text for name in FILES for text in prompts(name, "neighbour")]
    assert len(set(map(plain, every))) == len(every)
    assert [(text, held(text)) for text in every if held(text)] == []


@pytest.mark.parametrize("name", FILES)
def test_sentences_around_a_key_hold_no_other_key(name):
    ways = ("paraphrased", "trained", "mention", "contradicted", "applied", "combined")
    every = [text for way in ways for text in prompts(name, way)]
    assert [(text, held(text)) for text in every if held(text)] == []
