"""Questions for choosing recipes: none of them is one that judges."""

from collections import Counter
from dataclasses import fields

import pytest

from engram_bench import shipped
from engram_bench.data import patterns, prompt_sets
from engram_bench.data.development import FILE, control, development
from engram_bench.data.items import Wordings
from engram_bench.data.questions import questions
from engram_bench.data.training import CONTRADICTIONS, training_set
from engram_bench.data.ways import WAYS
from engram_bench.options import PROFILES, settle

SHIPPED = patterns.load(shipped.PATTERNS)
CHANGED = development(SHIPPED)


def plain(text):
    return " ".join(text.replace("{name}", "{}").replace("{input}", "{}").split()).casefold()


def test_no_sentence_is_trained_or_asked_elsewhere():
    sentences = prompt_sets.read(FILE)
    others = {plain(text) for text in CONTRADICTIONS}
    for file in FILE.parent.glob("*.yaml"):
        if file != FILE and "positive" not in file.stem and "own_words" not in file.stem:
            others |= {plain(text) for texts in prompt_sets.read(file).values() for text in texts}
    assert others & {plain(text) for texts in sentences.values() for text in texts} == set()
    for name, category in SHIPPED.categories.items():
        used = {plain(text) for text in (*category.trained, *category.rephrased)}
        for wordings in category.wordings.values():
            every = [text for field in fields(Wordings) if field.name != "in_each"
                     for text in getattr(wordings, field.name)]  # fmt: skip
            used |= {plain(text if isinstance(text, str) else text.prompt) for text in every}
        own = [text for kind, texts in sentences.items() if kind.startswith(f"{name}/") for text in texts]
        ours = {plain(text) for text in (*sentences.get(name, sentences["others"]), *sentences["mention"], *own)}
        assert used & ours == set()


@pytest.mark.parametrize("kind", ["rich", "bare"])
def test_training_is_that_of_the_other_profiles(kind):
    assert training_set(CHANGED, kind).examples == training_set(SHIPPED, kind).examples
    assert training_set(CHANGED, kind).replay == training_set(SHIPPED, kind).replay


def test_the_same_items_are_asked_in_other_sentences():
    for name, category in SHIPPED.categories.items():
        here, there = (questions(c, "rephrased") for c in (category, CHANGED.categories[name]))
        assert [q.item.id for q in here] == [q.item.id for q in there]
        assert {q.phrasing for q in here} & {q.phrasing for q in there} == set()
        assert questions(CHANGED.categories[name], "applied") == []
        assert bool(questions(CHANGED.categories[name], "paraphrased")) == (name == "world")
        ways = [way for way in WAYS if way not in ("seen", "heldout")]
        asked = {question.prompt for way in ways for question in questions(category, way)}
        kept = ("combined",) if name != "world" else ()  # asked of two keys as elsewhere
        changed = [way for way in ways if way not in ("contradicted", "neighbour", *kept)]
        ours = {question.prompt for way in changed for question in questions(CHANGED.categories[name], way)}
        assert asked & ours == set()


def test_the_profile_asks_them_of_items_of_its_own_draw():
    chosen, plan = settle({"engram_profile": "development"}, lambda _: ""), PROFILES["development"]
    assert chosen.patterns == development(SHIPPED.without_extra().sample(plan.sizes, plan.draw))
    assert not chosen.shipped_patterns
    world = chosen.patterns.categories["world"]
    plain = list(questions(world, "paraphrased"))
    assert Counter(question.item.input for question in plain) == Counter(
        {item.input: 3 for item in world.split("seen")}
    )
    assert len({question.item.id for question in plain}) == len(plain) >= 30  # enough to tell recipes apart
    assert chosen.patterns.sha256 != SHIPPED.without_extra().sample(plan.sizes, plan.draw).sha256
    assert len(control()) == 10


@pytest.mark.parametrize(("items", "each"), [("3", 3), ("1000", None)])
def test_items_take_the_place_of_the_profiles_numbers(items, each):
    found = settle({"engram_profile": "quick", "engram_items": items}, lambda _: "").patterns.categories
    for name, category in found.items():
        most = len(SHIPPED.categories[name].items)
        if name != "world":
            assert len(category.items) == min(each or most, most)


def test_a_category_whose_items_are_all_held_out_is_passed_over():
    few = SHIPPED.without_extra().sample(1)
    assert few.categories["acronym"].split("seen") == ()
    item, prompt = few.first_seen()
    assert item in few.categories[item.category].split("seen")
    assert item.input in prompt
