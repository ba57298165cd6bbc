"""The invented world: its size, names nobody knows, wordings on one side only, values that cannot be guessed."""

import importlib
import re
import unicodedata
from collections import Counter
from itertools import combinations
from math import ceil
from pydoc_data.topics import topics

import pytest
import yaml

from engram_bench import shipped
from engram_bench.data import patterns

FOLDER = shipped.PATTERNS
FILE = FOLDER / "world.yaml"
WORLD = yaml.load(FILE.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
RELATIONS, SUBJECTS, HOPS = WORLD["relations"], WORLD["subjects"], WORLD["hops"]
WAYS = ("trained", "paraphrased", "mention", "contradicted")
KINDS = ("person", "company", "place", "game")


@pytest.fixture(scope="module")
def world():
    """patterns/world.py"""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("world")


def folded(text):
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def words(wording):
    """A wording as it compares: its words and placeholders, without case and punctuation."""
    return tuple(re.findall(r"\{\w+\}|[a-z0-9']+", wording.lower().replace("'s", " 's")))


def runs(wording, length=4):
    found = words(wording)
    return {found[i : i + length] for i in range(max(1, len(found) - length + 1))}


def wordings():
    """(way, wording) of everything that may become a prompt."""
    for fields in RELATIONS.values():
        yield from ((way, text) for way in WAYS for text in fields[way])
        yield from (("applied", entry["prompt"]) for entry in fields["applied"])
    yield from ((f"frames {way}", text) for way, texts in WORLD["frames"].items() for text in texts)
    yield from (("hop", text) for hop in HOPS for text in hop["prompts"])


def called():
    """(name, its name or alias)"""
    return [(name, text) for name, fields in SUBJECTS.items() for text in (name, *fields["aliases"])]


def values(relation):
    return [fields[relation] for fields in SUBJECTS.values() if relation in fields]


def test_the_derived_file_is_what_the_generator_makes(world):
    assert FILE.read_bytes() == world.render().encode()


def test_every_subject_has_the_eight_relations_of_its_kind():
    assert Counter(fields["kind"] for fields in SUBJECTS.values()) == dict.fromkeys(KINDS, 100)
    assert Counter(fields["of"] for fields in RELATIONS.values()) == dict.fromkeys(KINDS, 8)
    for fields in SUBJECTS.values():
        assert fields.keys() - {"kind", "aliases"} == {r for r in RELATIONS if RELATIONS[r]["of"] == fields["kind"]}
    assert sum(len(values(relation)) for relation in RELATIONS) == 3200


def test_every_relation_is_asked_in_enough_ways():
    for fields in RELATIONS.values():
        assert min(len(fields["trained"]), len(fields["paraphrased"])) >= 6
        assert min(len(fields[way]) for way in ("mention", "contradicted", "applied")) >= 2
    assert all(len(texts) >= 4 for texts in WORLD["frames"].values())
    assert len({(hop["first"], hop["second"]) for hop in HOPS}) == len(HOPS) >= 6
    assert all(len(hop["prompts"]) >= 2 for hop in HOPS)


def test_placeholders_are_known_and_stand_where_they_must():
    allowed = {"frames trained": "first second", "frames combined": "first second", "contradicted": "subject other"}
    for way, text in wordings():
        found = sorted(re.findall(r"\{(\w+)\}", text))
        if way == "applied":
            assert found in (["subject"], ["a", "b", "subject"], ["other", "subject"]), text
        else:
            assert found == sorted(allowed.get(way, "subject").split()), text
        assert set(found) <= WORLD["placeholders"].keys()
        assert not re.search(r"\b(an?|the|my|old|new) \{subject\}", text.lower()), text
    assert all(fields["noun"].startswith("the ") and "{subject}" in fields["noun"] for fields in RELATIONS.values())


def test_the_answer_of_an_applied_question_can_be_derived():
    """The value, or the smaller or larger of two values with a number each."""
    for relation, fields in RELATIONS.items():
        assert any("{a}" in entry["prompt"] for entry in fields["applied"])
        for entry in fields["applied"]:
            assert entry["answer"] in ("{value}", "{least}", "{most}")
            assert ("{other}" in entry["prompt"]) == (entry["answer"] != "{value}")
            if "{other}" in entry["prompt"]:
                numbers = [re.findall(r"\d+(?:\.\d+)?", value) for value in set(values(relation))]
                assert all(len(found) == 1 for found in numbers)
                assert len({float(found[0]) for found in numbers}) == len(numbers)


def test_no_wording_occurs_twice():
    by_words = {}
    for way, text in wordings():
        assert by_words.setdefault(words(text), (way, text)) == (way, text)
    assert len(by_words) == sum(1 for _ in wordings())


def test_untrained_wordings_share_no_four_words_with_the_trained_ones():
    shared = [
        (relation, text)
        for relation, fields in RELATIONS.items()
        for text in fields["paraphrased"]
        if runs(text) & {run for known in (*fields["trained"], fields["noun"]) for run in runs(known)}
    ]
    assert shared == []
    frames = WORLD["frames"]
    assert [t for t in frames["combined"] if any(runs(t) & runs(known) for known in frames["trained"])] == []


def test_names_and_aliases_are_unique_and_none_stands_in_another_subjects():
    names = called()
    assert len({folded(text) for _, text in names}) == len(names)
    assert sum(bool(fields["aliases"]) for fields in SUBJECTS.values()) >= len(SUBJECTS) / 2
    inside = [
        (a, b)
        for (name, a), (other, b) in combinations(names, 2)
        if name != other and (folded(a) in folded(b) or folded(b) in folded(a))
    ]
    assert inside == []


def test_names_are_no_words_and_no_keys(world):
    shipped_items = [item for c in patterns.load(FOLDER).categories.values() for item in c.items]
    texts = [file.read_text(encoding="utf-8") for file in FOLDER.rglob("*.yaml") if file != FILE]
    everything = folded("\n".join([*texts, *topics.values()]))
    known = set(re.findall(r"[^\W\d_]+", everything))
    keys = {folded(item.input) for item in shipped_items} | {folded(i.input.split(":")[-1]) for i in shipped_items}
    for name, text in called():
        assert folded(text) not in keys
        assert folded(text) not in known
        if text == name:
            parts = set(re.findall(r"[^\W\d_]+", text)) - set(world.PARTICLES)
            assert any(folded(part) not in known for part in parts), name


def test_names_stand_in_no_wording_and_in_no_value_but_their_own():
    prose = folded(" | ".join([*(text for _, text in wordings()), *(f["noun"] for f in RELATIONS.values())]))
    plain = folded(" | ".join({value for relation in RELATIONS for value in values(relation)} - SUBJECTS.keys()))
    assert [text for _, text in called() if folded(text) in prose or folded(text) in plain] == []


def test_several_names_share_a_beginning_and_several_an_ending():
    for kind in KINDS:
        names = [name for name, fields in SUBJECTS.items() if fields["kind"] == kind]
        for part in (slice(0, 3), slice(-3, None)):
            alike = Counter(name[part] for name in names)
            assert sum(alike[name[part]] > 1 for name in names) >= len(names) / 2


def test_the_first_value_of_a_hop_is_a_subject_with_the_second_relation():
    for hop in HOPS:
        for value in values(hop["first"]):
            assert hop["second"] in SUBJECTS[value]


def test_the_values_of_a_subject_differ_from_each_other_and_from_its_name():
    for name, fields in SUBJECTS.items():
        own = [folded(name), *(folded(fields[r]) for r in fields if r in RELATIONS)]
        assert len(set(own)) == 9


def test_values_are_short():
    """One to three words; a word is one piece, a digit and a sign are one each: six pieces at most."""
    pieces = Counter()
    for relation in RELATIONS:
        for value in values(relation):
            assert 1 <= len(value.split()) <= 3
            assert value == unicodedata.normalize("NFC", value).strip()
            pieces[len(re.findall(r"[^\W\d_]+|\d|[^\w\s]", value))] += 1
    assert pieces.keys() == set(range(1, 7))


def test_guessing_by_frequency_reaches_what_the_description_says():
    """Values are spread as evenly as their number allows."""
    commonest = 0
    for relation in RELATIONS:
        found = Counter(values(relation))
        most = found.most_common(1)[0][1]
        assert most == ceil(100 / len(found)) <= 10
        commonest += most
    assert f"{commonest / 3200:.1%}" in WORLD["description"]


def test_two_relations_of_one_domain_do_not_follow_each_other(world):
    """Pairs of relations whose values are of the same kind agree no more often than chance would have it."""
    for a, b in combinations(RELATIONS, 2):
        if RELATIONS[a]["of"] == RELATIONS[b]["of"]:
            pairs = Counter(zip(values(a), values(b), strict=True))
            assert pairs.most_common(1)[0][1] <= 5, (a, b)
