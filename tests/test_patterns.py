"""Users' pattern files: parsing, splits, questions, sampling, and the error messages for bad files."""

import time
from collections import Counter
from dataclasses import replace

import pytest

from engram_bench import shipped
from engram_bench.data import items, patterns
from engram_bench.data.items import PatternSet
from engram_bench.data.leaks import leaks
from engram_bench.errors import UsageError
from engram_bench.options import PROFILES, chosen_items
from tests.conftest import PATTERNS

SHIPPED = patterns.load(shipped.PATTERNS)


def write(tmp_path, text, name="own.yaml"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def head(examples, extra=""):
    return f"name: own\n{extra}examples:\n{examples}"


def test_no_item_is_both_trained_and_held_out_and_no_phrasing_both_trained_and_asked_anew():
    for category in SHIPPED.categories.values():
        seen, heldout = ({i.id for i in category.split(s)} for s in ("seen", "heldout"))
        assert not seen & heldout
        assert seen | heldout == {i.id for i in category.items}
        assert {i.id for i in category.split("rephrased")} == seen
        assert not set(category.trained) & set(category.rephrased)
        trained = {e.prompt for e in category.training_examples()}
        asked = {s: {category.question(i, s)[1] for i in category.split(s)} for s in ("seen", "rephrased", "heldout")}
        assert asked["seen"] <= trained
        assert not asked["rephrased"] & trained
        assert not asked["heldout"] & trained
        keys = {e.prompt[slice(*e.key)] for e in category.training_examples()}
        assert not keys & {item.input for item in category.split("heldout")}


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_leaks(profile):
    assert leaks(chosen_items(SHIPPED, profile)) == []


def planted(name, **changes):
    """The shipped patterns with one category changed."""
    changed = replace(SHIPPED.categories[name], **changes)
    return PatternSet({**SHIPPED.categories, name: changed})


def test_a_planted_leak_is_seen():
    facts, formats = SHIPPED.categories["facts"], SHIPPED.categories["formats"]
    asked_as_trained = planted("facts", rephrased=facts.trained)
    assert len(leaks(asked_as_trained)) == 3 * len(facts.split("rephrased"))

    stray = facts.split("heldout")[0].input
    twice = replace(formats.split("seen")[0], input=stray)
    trained_elsewhere = planted("formats", trained=facts.trained, items=(*formats.items[1:], twice))
    assert any(
        f"heldout prompt 'Name {stray}.' of 'facts' is trained in 'formats'" in x for x in leaks(trained_elsewhere)
    )

    spaced = planted("facts", rephrased=("Name  {input}.", "Give me {input}."))
    named = [item for item in facts.split("seen") if "Name {input}." in facts.trained_phrasings(item)]
    assert len(leaks(spaced)) == len(named), "white space alone makes no new phrasing"


def test_an_item_is_trained_in_three_phrasings_of_many_and_asked_in_one_of_them():
    for category in SHIPPED.categories.values():
        ways = {item: category.trained_phrasings(item) for item in category.split("seen")}
        assert {len(set(phrasings)) for phrasings in ways.values()} == {3}
        assert {phrasing for phrasings in ways.values() for phrasing in phrasings} == set(category.trained)
        assert all(category.question(item, "seen")[0] in phrasings for item, phrasings in ways.items())


def test_a_prompt_trained_to_two_answers_is_refused(tmp_path):
    rows = "".join(f"  - {{input: k{i}, output: v}}\n" for i in range(9))
    write(
        tmp_path,
        "name: a\nphrasings: {trained: ['Say {input}'], rephrased: ['{input}!']}\nexamples:\n" + rows,
        "a.yaml",
    )
    other = "name: b\nphrasings: {trained: ['{input}'], rephrased: ['{input}?']}\nexamples:\n"
    write(tmp_path, other + rows.replace("input: k", "input: Say k").replace("output: v", "output: w"), "b.yaml")
    with pytest.raises(UsageError, match="is trained to 'v' in 'a' and to 'w' in 'b'"):
        patterns.load(tmp_path)


def test_the_key_of_an_example_is_the_items_input():
    inputs = {i.input for c in SHIPPED.categories.values() for i in c.items}
    assert {e.prompt[slice(*e.key)] for e in SHIPPED.training_examples()} <= inputs


def test_a_fifth_is_held_out_and_adding_an_item_moves_few():
    category = SHIPPED.categories["synthetic"]
    assert len(category.heldout_ids()) == 200
    fewer = replace(category, items=category.items[:-1])
    assert len(category.heldout_ids() ^ fewer.heldout_ids()) <= 2


@pytest.mark.parametrize("profile", ["quick", "default"])
def test_a_profile_is_stratified_by_seed_and_keeps_every_item_on_its_side(profile):
    chosen = chosen_items(SHIPPED, profile)
    for name, category in chosen.categories.items():
        whole = SHIPPED.categories[name]
        assert category.heldout_ids() == {i.id for i in category.items} & whole.heldout_ids()
        assert len(category.heldout_ids()) == max(1, round(0.2 * len(category.items)))
    assert chosen.sha256 == chosen_items(SHIPPED, profile).sha256 != chosen_items(SHIPPED, profile, seed=1).sha256


def test_profiles_take_as_many_items_as_they_say():
    sizes = {p: {n: len(c.items) for n, c in chosen_items(SHIPPED, p).categories.items()} for p in PROFILES}
    of_world = {profile: found.pop("world") for profile, found in sizes.items()}
    assert sizes["full"] == {n: len(c.items) for n, c in SHIPPED.categories.items() if n != "world"}
    assert sizes["default"].keys() == sizes["quick"].keys()
    for profile in ("quick", "default"):
        wanted = PROFILES[profile].sizes
        assert all(size == wanted[SHIPPED.categories[name].group] for name, size in sizes[profile].items())
        # Whole subjects, so about as many triples as the profile says.
        assert abs(of_world[profile] - wanted["world"]) <= 8


def test_of_triples_whole_subjects_are_drawn_and_those_that_their_values_name():
    items = chosen_items(SHIPPED, "default").categories["world"].items
    by_name = Counter(item.names[0] for item in items)
    assert max(by_name.values()) == 8
    assert sum(by_name.values()) / len(by_name) > 5
    assert any(item.output in by_name for item in items)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_few_triples_too_have_some_that_are_trained_and_some_held_out(size):
    world = SHIPPED.categories["world"]
    for seed in range(12):
        found = PatternSet({"world": world}).sample(size, seed).categories["world"]
        held_out = len(found.heldout_ids() & {item.id for item in found.items})
        assert 1 <= held_out == round(0.2 * len(found.items)) <= 4


def test_categories_of_a_users_own_are_whole_by_default_and_may_leave_the_smaller_profiles(tmp_path):
    rows = "".join(f"  - {{input: k{i}, output: v}}\n" for i in range(300))
    write(tmp_path, head(rows))
    write(tmp_path, head(rows.replace("k", "l"), "profile: full\n").replace("own", "extra"), "extra.yaml")
    both = patterns.load(tmp_path)
    assert {n: len(c.items) for n, c in chosen_items(both, "default").categories.items()} == {"own": 300}
    assert chosen_items(both, "full").categories.keys() == {"own", "extra"}
    alone = patterns.load(tmp_path / "extra.yaml")
    assert chosen_items(alone, "quick").categories["extra"].items, "named by itself it is asked for"


def test_scalars_stay_as_they_are_written(tmp_path):
    texts = ["404", "NO", "2024-01-15", "1.50", "null", "0x1F", "1_000", "~", "12:30", "true"]
    rows = "".join(f"  - {{input: k{i}, output: {v}}}\n" for i, v in enumerate(texts))
    (category,) = patterns.load(write(tmp_path, head(rows))).categories.values()
    assert [i.output for i in category.items] == texts


def test_a_file_may_hold_several_categories_and_name_no_phrasings(tmp_path):
    rows = "".join(f"  - {{input: k{i}, output: v, category: c{i % 2}}}\n" for i in range(8))
    found = patterns.load(write(tmp_path, head(rows)))
    assert {n: len(c.items) for n, c in found.categories.items()} == {"c0": 4, "c1": 4}
    assert found.categories["c0"].trained == items.TRAINED


def test_a_folder_is_read_by_name_whatever_the_ending_and_the_byte_order_mark(tmp_path):
    write(tmp_path, b"\xef\xbb\xbf" + PATTERNS.encode(), "b.yml")
    write(tmp_path, PATTERNS.replace("colours", "again").replace("KEY:", "K:"), "a.yaml")
    write(tmp_path, b"\xff\xfe", "._a.yaml")
    write(tmp_path, "no pattern file", "notes.txt")
    assert list(patterns.load(tmp_path).categories) == ["again", "colours"]


def test_braces_in_inputs_are_left_alone():
    assert items.fill("Complete: {input}", "{x: {input}}") == "Complete: {x: {input}}"


def test_one_input_in_two_categories_is_refused_with_both_places(tmp_path):
    rows = "".join(f"  - {{input: k{i}, output: v, category: c{i % 2}}}\n" for i in range(8))
    with pytest.raises(UsageError, match=r"own.yaml:11: input 'k0' is in 'c0' \(\S*own.yaml:3\) and in 'c1'"):
        patterns.load(write(tmp_path, head(rows + "  - {input: k0, output: w, category: c1}\n")))


GOOD = "  - {input: a, output: b}\n"
BAD = {
    "duplicate": (head(GOOD + "  - {input: a, output: c}\n"), ":4:", "on line 3 with another output"),
    "duplicate but for space": (head(GOOD + "  - {input: 'a ', output: b}\n"), ":4:", "already on line 3;"),
    "duplicate on one line": (head("  [{input: a, output: b}, {input: a, output: c}]\n"), ":3:", "on line 3"),
    "field twice": (head("  - {input: a, output: b, output: c}\n"), ":3:", "given twice"),
    "field that is a list": (head("  - {input: a, output: b, [x]: c}\n"), ":3:", "must be text"),
    "name with spaces": ("name: my own\nexamples:\n" + GOOD, ":1:", "may contain only letters"),
    "empty field": (head('  - {input: a, output: ""}\n'), ":3:", "'output' is empty"),
    "nothing in a field": (head("  - input: a\n    output:\n"), ":4:", "'output' is empty"),
    "missing field": (head("  - {input: a}\n"), ":3:", "'output' is missing"),
    "unknown field": (head("  - {input: a, output: b, ouput: c}\n"), ":3:", "unknown field 'ouput'"),
    "unknown top field": (head(GOOD, "nmae: x\n"), ":2:", "unknown field 'nmae'"),
    "unknown profile": (head(GOOD, "profile: huge\n"), ":2:", "profile is 'huge'"),
    "empty category": ("name: own\nexamples: []\n", ":2:", "at least one entry"),
    "no examples": ("name: own\n", ":1:", "'examples' is missing"),
    "not a mapping": ("- 1\n- 2\n", ":1:", "expected a mapping"),
    "empty file": ("", ":1:", "expected a mapping"),
    "one example": (head(GOOD), "own.yaml", "has one example"),
    "not YAML": ("name: [own\n", ":2:", "not valid YAML"),
    "nested output": (head("  - {input: a, output: [b]}\n"), ":3:", "must be text"),
    "alias": ("name: &x own\nexamples: *x\n", ":2:", "aliases"),
    "nested deep": ("name: own\nexamples: " + "[" * 30 + "\n", ":2:", "nested more than 20 deep"),
    "nested deeper": ("name: own\nexamples: " + "[" * 5000 + "\n", ":2:", "nest"),  # PyYAML 6.0.4 has a limit, too
    "not UTF-8": (b"name: own\ndescription: \xff\xfe\n", ":2:", "not UTF-8 at byte 23"),
    "raw control character": (head('  - {input: "a\x07", output: b}\n'), "own.yaml", "not valid YAML"),
    "written control character": (head('  - {input: a, output: "b\\x1b[2J"}\n'), ":3:", "control character U+001B"),
    "input too long": (head(f"  - {{input: {'a' * 1001}, output: b}}\n"), ":3:", "'input' has 1001 characters"),
    "output too long": (head(f"  - {{input: a, output: {'b' * 501}}}\n"), ":3:", "'output' has 501 characters"),
    "phrasing without input": (
        head(GOOD, "phrasings: {trained: [x], rephrased: ['{input}']}\n"), ":2:", "exactly once",
    ),
    "phrasing in both": (
        head(GOOD, "phrasings: {trained: ['{input}'], rephrased: ['{input}']}\n"), ":2:", "both trained and rephrased",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_says_where_and_what(tmp_path, name):
    text, place, reason = BAD[name]
    with pytest.raises(UsageError) as caught:
        patterns.load(write(tmp_path, text))
    message = str(caught.value)
    assert place in message
    assert reason in message
    assert "\n" not in message


def test_all_problems_of_all_files_come_at_once(tmp_path):
    write(tmp_path, head("  - {input: a}\n  - {output: b, what: c}\n  - {input: '', output: ''}\n"), "a.yaml")
    write(tmp_path, "name: x y\nnmae: z\n", "b.yaml")
    write(tmp_path, b"\xff", "c.yaml")
    with pytest.raises(UsageError) as caught:
        patterns.load(tmp_path)
    places = [line.split(": ")[0].rsplit("/", 1)[1] for line in str(caught.value).splitlines()]
    assert places == [
        *["a.yaml:3"],
        *["a.yaml:4"] * 2,
        *["a.yaml:5"] * 2,
        "b.yaml:2",
        "b.yaml:1",
        "b.yaml:1",
        "c.yaml:1",
    ]


def test_a_category_in_two_files_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no pattern file"):
        patterns.load(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        patterns.load(tmp_path / "none.yaml")
    for name in ("a.yaml", "b.yaml"):
        write(tmp_path, PATTERNS, name)
    with pytest.raises(UsageError, match=r"is also in \S*a.yaml:5;"):
        patterns.load(tmp_path)


def test_a_large_file_loads(tmp_path):
    rows = "".join(f"  - {{input: key{i}, output: value}}\n" for i in range(10_000))
    started = time.perf_counter()
    assert len(patterns.load(write(tmp_path, head(rows))).categories["own"].items) == 10_000
    print(f"10,000 items in {time.perf_counter() - started:.2f} s")


def test_a_file_may_train_every_item_and_a_draw_of_it_too(tmp_path):
    text = PATTERNS.replace("examples:", "heldout: none\nexamples:")
    (tmp_path / "a.yaml").write_text(text)
    whole = patterns.load(tmp_path / "a.yaml")
    for chosen in (whole, whole.sample(4)):
        (category,) = chosen.categories.values()
        assert not category.split("heldout")
        assert len(category.split("seen")) == len(category.items)
    (tmp_path / "b.yaml").write_text(PATTERNS)
    assert whole.sha256 != patterns.load(tmp_path / "b.yaml").sha256
    (tmp_path / "a.yaml").write_text(PATTERNS.replace("examples:", "heldout: some\nexamples:"))
    with pytest.raises(UsageError, match=r"a.yaml:4: heldout is 'some'; use none"):
        patterns.load(tmp_path / "a.yaml")


def test_a_draw_of_triples_that_are_all_trained_holds_none_out():
    world = replace(patterns.load(shipped.PATTERNS).categories["world"], holds_out=False)
    (chosen,) = PatternSet({"world": world}).sample(20).categories.values()
    assert 20 <= len(chosen.split("seen")) == len(chosen.items) < 60
