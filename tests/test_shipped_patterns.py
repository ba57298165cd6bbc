"""The shipped data: enough items, answers that follow their rules, no key inside another, a source in every file."""

import importlib
import re
import unicodedata
from collections import Counter

import pytest
import yaml

from engram_bench import shipped, stats
from engram_bench.data import patterns, prompt_sets, training
from engram_bench.data.items import PatternSet
from engram_bench.options import chosen_items
from tests.running import ROOT

FOLDER = shipped.PATTERNS
SHIPPED = patterns.load(FOLDER)
CORE = ("code_idioms", "facts", "formats", "error_fixes")
FILES = sorted(FOLDER.rglob("*.yaml"))


@pytest.fixture(scope="module")
def generate():
    """patterns/generate.py, imported with the modules beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("generate")


def plain(text):
    return " ".join(text.casefold().split())


def whole_words(keys, texts):
    """(key, text) where a key stands in a text as whole words, whatever the case and the white space."""
    keys = {plain(key): key for key in keys}
    found = []
    for text in texts:
        whole = plain(text)
        for key in (key for key in keys if key in whole):
            before = r"(?<!\w)" if re.match(r"\w", key) else ""
            after = r"(?!\w)" if re.search(r"\w$", key) else ""
            if re.search(before + re.escape(key) + after, whole):
                found.append((keys[key], text))
    return found


def test_there_is_enough_to_carry_a_claim():
    sizes = {name: len(c.items) for name, c in SHIPPED.categories.items()}
    assert sum(sizes.values()) >= 2000
    assert all(sizes[name] >= 200 for name in CORE)
    assert sizes["synthetic"] == 1000
    assert sum(c.group == "lookups" for c in SHIPPED.categories.values()) == 12


def test_17_points_can_be_told_at_80_percent_power_and_10_in_the_full_profile():
    """At 20% discordant answers: over all items of the default profile, by category of the core in the full one."""
    default = sum(len(category.split("seen")) for category in chosen_items(SHIPPED, "default").categories.values())
    assert stats.minimum_detectable(default) < 0.17
    assert all(stats.minimum_detectable(len(SHIPPED.categories[name].split("seen"))) < 0.10 for name in CORE)


def test_the_readme_counts_what_there_is():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sizes = Counter()
    for category in SHIPPED.categories.values():
        sizes[category.group] += len(category.items)
    assert f"| {sizes['core']:,} in four core categories |" in readme
    assert f"| {sizes['lookups']:,} in twelve lookup families |" in readme
    control, labelled, hard = map(len, (prompt_sets.control(), prompt_sets.routing(), prompt_sets.routing("hard")))
    own = sum(p.input is not None for p in prompt_sets.routing("in own words"))
    told = f"| {control} control prompts, {labelled:,} labelled routing prompts, {own} in own words, {hard} hard ones |"
    assert told in readme


def test_derived_files_are_what_the_generator_makes(generate):
    for name, text in generate.derived().items():
        assert (FOLDER / name).read_bytes() == text.encode(), name
    assert (FOLDER / "prompts" / "routing_positive.yaml").read_bytes() == generate.routing(SHIPPED).encode()
    assert (FOLDER / "SHA256").read_text().strip() == SHIPPED.sha256


@pytest.mark.parametrize("file", FILES, ids=[file.relative_to(FOLDER).as_posix() for file in FILES])
def test_every_file_names_its_source_and_licence(file):
    fields = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    assert fields["name"] == file.stem
    assert fields["license"] == "MIT"
    assert len(fields["source"]) > 3
    assert fields["description"].endswith(".")


def test_every_category_has_six_phrasings_and_not_only_prefixes():
    for category in SHIPPED.categories.values():
        for phrasings in (category.trained, category.rephrased):
            assert len(phrasings) >= 3
            assert any(not phrasing.endswith("{input}") for phrasing in phrasings)


def test_no_key_stands_inside_another():
    inputs = [item.input for c in SHIPPED.categories.values() for item in c.items]
    everything = "\0".join(map(plain, inputs))
    repeated = [text for text in inputs if everything.count(plain(text)) > 1]
    assert [(key, text) for key, text in whole_words(repeated, inputs) if plain(key) != plain(text)] == []
    assert len({plain(text) for text in inputs}) == len(inputs)


def test_texts_are_in_composed_form_without_odd_spaces():
    for item in (i for c in SHIPPED.categories.values() for i in c.items):
        for text in (item.input, item.output):
            assert text == unicodedata.normalize("NFC", text).strip()
            assert "\n" not in text
            assert "  " not in text


def test_rules_have_held_out_items_with_trained_siblings():
    """Of each format, items on both sides; its name stands before the colon."""
    formats = SHIPPED.categories["formats"]
    rules = {s: {i.input.split(": ")[0] for i in formats.split(s)} for s in ("seen", "heldout")}
    assert len(rules["seen"]) >= 25
    assert len(rules["heldout"]) >= 0.8 * len(rules["seen"])
    assert rules["heldout"] <= rules["seen"]


def test_fixed_lines_are_python():
    """A right line compiles where such a line may stand: alone, or as a header or a branch of a statement."""
    places = (
        "{}",
        "{} pass",
        "if 1: pass\n   {} pass",
        "try: pass\n   {}",
        "try: pass\n   {} pass",
        "{} pass\n   finally: 0",
    )
    forms = ["async def f():\n  while 1:\n   " + place for place in places]
    rights = {item.output for item in SHIPPED.categories["error_fixes"].items}
    assert [right for right in rights if not any(compiles(form.format(right)) for form in forms)] == []


def compiles(code):
    try:
        compile(code, "line", "exec")
    except SyntaxError:
        return False
    return True


def test_lookups_agree_with_the_tables_they_cite():
    found = {name: {i.input.split(":", 1)[1]: i.output for i in c.items} for name, c in SHIPPED.categories.items()
             if c.group == "lookups"}  # fmt: skip
    numbers = {name: int(n) for name, n in found["element_number"].items()}
    assert sorted(numbers.values()) == list(range(1, 119))
    assert set(found["element_name"].values()) == set(numbers)
    assert all(unicodedata.lookup(name) == chr(int(code[2:], 16)) for code, name in found["unicode_name"].items())
    assert all(re.fullmatch(r"[A-Z]{2}", code) for code in found["country_code"])
    assert all(re.fullmatch(r"[A-Z]{3}", code) for code in found["currency_code"])
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", value) for value in found["mime_type"].values())
    assert all(0 < int(port) < 65536 for port in found["port"])


def test_control_prompts_share_no_key_with_any_pattern():
    prompts = prompt_sets.control()
    assert len(set(prompts)) == len(prompts) >= 300
    assert whole_words([item.input for c in SHIPPED.categories.values() for item in c.items], prompts) == []


def test_control_prompts_are_drawn_of_every_kind():
    kinds = prompt_sets.read(prompt_sets.FOLDER / "control.yaml")
    assert all(len(texts) >= 60 for texts in kinds.values())
    drawn = prompt_sets.control(8)
    assert drawn == prompt_sets.control(8) != prompt_sets.control(8, seed=1)
    assert all(len(set(texts) & set(drawn)) == 8 for texts in kinds.values())
    assert set(drawn[: len(kinds)]).isdisjoint(drawn[len(kinds) :])


def test_mentions_name_trained_items_in_sentences_of_their_own():
    sentences = prompt_sets.read(prompt_sets.FOLDER / "mentions.yaml")["mentions"]
    asked = {phrasing for c in SHIPPED.categories.values() for phrasing in (*c.trained, *c.rephrased)}
    assert [s for s in sentences if s.count("{input}") != 1 or s in asked] == []
    assert len(set(sentences)) == len(sentences) >= 70
    trained = {item for category in SHIPPED.categories.values() for item in category.split("seen")}
    named = prompt_sets.mentions(SHIPPED, len(trained) + 1)
    assert {item for _, item in named[:-1]} == trained
    forms = [{sentence for sentence in sentences if sentence.replace("{input}", form) == text}
             for text, item in named for form in (item.input, *item.names[:1])]  # fmt: skip
    assert {sentence for form in forms for sentence in form} == set(sentences)
    alone = [item.input not in text for text, item in named if item.names]
    assert 0.4 < sum(alone) / len(alone) < 0.6
    assert all(item.names[0] in text for text, item in named if item.input not in text)


def test_passages_hold_trained_keys_and_no_others():
    texts = prompt_sets.read(prompt_sets.FOLDER / "passages.yaml")
    assert list(texts) == ["prose with keys", "code with keys"]
    assert all(len(set(some)) == len(some) >= 12 for some in texts.values())
    every = [text for some in texts.values() for text in some]
    assert [text for text in every if not 40 <= len(text.split()) <= 120 or text.count("{input}") not in (1, 2)] == []
    keys = [item.input for c in SHIPPED.categories.values() for item in c.items]
    assert whole_words(keys, every) == [], "only what is put in is a key"
    found, trained = prompt_sets.passages(SHIPPED), {i for c in SHIPPED.categories.values() for i in c.split("seen")}
    assert [passage.kind for passage in found] == [kind for kind, some in texts.items() for _ in some]
    assert [len(passage.keys) for passage in found] == [text.count("{input}") for text in every]
    assert all(key in passage.text for passage in found for key in passage.keys)
    inputs = [key for passage in found for key in passage.keys]
    assert {item.input for item in trained}.issuperset(inputs)
    assert len(set(inputs)) == len(inputs)
    assert {item.category for item in trained if item.input in inputs} == set(SHIPPED.categories)


def test_passages_are_drawn_by_seed():
    first, again, other = (prompt_sets.passages(SHIPPED, 3, seed) for seed in (0, 0, 1))
    assert len(first) == 6
    assert first == again
    assert not {key for p in first for key in p.keys} & {key for p in other for key in p.keys}
    few = PatternSet({"port": SHIPPED.sample(2).categories["port"]})
    assert {key for p in prompt_sets.passages(few) for key in p.keys} == {few.categories["port"].split("seen")[0].input}
    assert prompt_sets.passages(PatternSet({})) == []


def test_no_passage_is_trained_on():
    """Neither a passage nor, apart from its keys, a sentence of it."""
    trained = training.training_set(SHIPPED, "rich")
    prompts = "\0".join(map(plain, (*(example.prompt for example in trained.examples), *trained.replay)))
    texts = prompt_sets.read(prompt_sets.FOLDER / "passages.yaml")
    sentences = {plain(s) for some in texts.values() for text in some for s in re.split(r"[.\n]", text) if len(s) > 20}
    assert len(sentences) > 100
    assert [s for s in sentences if s in prompts] == []


def test_routing_prompts_hold_what_they_ask_for_and_stand_in_no_other_set():
    own = [p for p in prompt_sets.routing("in own words") if p.input]
    every = [*prompt_sets.routing(), *own, *prompt_sets.routing("hard")]
    items = {name: {item.input for item in c.items} for name, c in SHIPPED.categories.items()}
    assert [p for p in every if p.input and not (p.input in p.text and p.input in items[p.kind])] == []
    texts = {p.text for p in every}
    others = (prompt_sets.FOLDER / f"routing_development_{label}.yaml" for label in ("positive", "negative"))
    known = {entry for file in others for entries in prompt_sets.read(file).values() for entry in entries}
    assert len(texts) == len(every)
    assert texts.isdisjoint(known)


def test_routing_prompts_are_labelled_by_what_they_hold():
    prompts = prompt_sets.routing()
    asking = Counter(p.input is not None for p in prompts)
    assert asking[True] >= 500
    assert asking[False] >= 500
    assert len({p.text for p in prompts}) == len(prompts)
    trained = {name: [i.input for i in c.split("seen")] for name, c in SHIPPED.categories.items()}
    assert [p for p in prompts if p.input and not (p.input in p.text and p.input in trained[p.kind])] == []
    keys = [item.input for c in SHIPPED.categories.values() for item in c.items]
    assert whole_words(keys, [p.text for p in prompts if not p.input]) == []
    hard = ("http://", "Bug report:", "Source code:", "Support:", "undefine", "the capital of")
    assert all(any(start in p.text for p in prompts if not p.input) for start in hard)
