"""Pattern files: what is read, how it is split and asked, and what a bad file says."""

import importlib.util
import time

import pytest

from engram_bench import patterns
from engram_bench.errors import UsageError
from engram_bench.options import PROFILES, ROOT
from tests.conftest import PATTERNS

SHIPPED = patterns.load(ROOT / "patterns")
LEAST = {"code_idioms": 33, "facts": 37, "formats": 29, "error_fixes": 32, "synthetic": 100}


def write(tmp_path, text, name="own.yaml"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def head(examples, extra=""):
    return f"name: own\n{extra}examples:\n{examples}"


def test_shipped_data_has_what_the_requirements_ask():
    sizes = {name: len(c.items) for name, c in SHIPPED.categories.items()}
    assert all(sizes[name] >= least for name, least in LEAST.items())
    lookups = [c for c in SHIPPED.categories.values() if c.group == "lookups"]
    assert len(lookups) == 7
    assert sum(len(c.items) for c in lookups) >= 130


def test_no_item_is_both_trained_and_held_out_and_no_phrasing_both_trained_and_asked_anew():
    for category in SHIPPED.categories.values():
        seen, heldout = ({i.id for i in category.split(s)} for s in ("seen", "heldout"))
        assert not seen & heldout
        assert seen | heldout == {i.id for i in category.items}
        assert {i.id for i in category.split("rephrased")} == seen
        assert not set(category.trained) & set(category.rephrased)
        trained = {e.prompt for e in category.training_examples()}
        asked = {s: {category.question(i, s)[1] for i in category.split(s)} for s in patterns.SPLITS}
        assert asked["seen"] <= trained
        assert not asked["rephrased"] & trained
        assert not asked["heldout"] & trained
        keys = {e.prompt[slice(*e.key)] for e in category.training_examples()}
        assert not keys & {item.input for item in category.split("heldout")}


def test_a_planted_leak_is_seen():
    category = SHIPPED.categories["facts"]
    leaky = patterns.replace(category, rephrased=category.trained)
    item = category.split("seen")[0]
    assert leaky.question(item, "rephrased")[1] in {e.prompt for e in leaky.training_examples()}


def test_the_key_of_an_example_is_the_items_input():
    for example in SHIPPED.training_examples():
        assert example.prompt[slice(*example.key)]
    inputs = {i.input for c in SHIPPED.categories.values() for i in c.items}
    assert {e.prompt[slice(*e.key)] for e in SHIPPED.training_examples()} <= inputs


def test_a_fifth_is_held_out_and_adding_an_item_moves_few():
    category = SHIPPED.categories["synthetic"]
    assert len(category.heldout_ids()) == 25
    fewer = patterns.replace(category, items=category.items[:-1])
    assert len(category.heldout_ids() ^ fewer.heldout_ids()) <= 2


def test_a_sample_is_stratified_and_keeps_every_item_on_its_side():
    quick = SHIPPED.sample(PROFILES["quick"].items_per_category)
    for name, category in quick.categories.items():
        assert len(category.items) == 15
        assert category.heldout_ids() == {i.id for i in category.items} & SHIPPED.categories[name].heldout_ids()
    assert quick.sha256 == SHIPPED.sample(15).sha256 != SHIPPED.sample(15, seed=1).sha256


def test_derived_files_are_what_the_generator_makes():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "patterns" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "patterns" / "synthetic.yaml").read_text(encoding="utf-8") == generate.synthetic()
    assert (ROOT / "patterns" / "SHA256").read_text().strip() == SHIPPED.sha256


def test_scalars_stay_as_they_are_written(tmp_path):
    rows = "".join(
        f"  - {{input: k{i}, output: {v}}}\n" for i, v in enumerate(["404", "NO", "2024-01-15", "1.50", "null"])
    )
    (category,) = patterns.load(write(tmp_path, head(rows))).categories.values()
    assert [i.output for i in category.items] == ["404", "NO", "2024-01-15", "1.50", "null"]


def test_a_file_may_hold_several_categories_and_name_no_phrasings(tmp_path):
    rows = "".join(f"  - {{input: k{i}, output: v, category: c{i % 2}}}\n" for i in range(8))
    found = patterns.load(write(tmp_path, head(rows)))
    assert {n: len(c.items) for n, c in found.categories.items()} == {"c0": 4, "c1": 4}
    assert found.categories["c0"].trained == patterns.TRAINED


def test_braces_in_inputs_are_left_alone():
    assert patterns.fill("Complete: {input}", "{x: {input}}") == "Complete: {x: {input}}"


def test_one_input_in_two_categories_is_refused(tmp_path):
    rows = "".join(f"  - {{input: k{i}, output: v, category: c{i % 2}}}\n" for i in range(8))
    with pytest.raises(UsageError, match="is in 'c0' and in 'c1'"):
        patterns.load(write(tmp_path, head(rows + "  - {input: k0, output: w, category: c1}\n")))


GOOD = "  - {input: a, output: b}\n"
BAD = {
    "duplicate": (head(GOOD + "  - {input: a, output: c}\n"), ":4:", "stands on line 3 already"),
    "duplicate on one line": (head("  [{input: a, output: b}, {input: a, output: c}]\n"), ":3:", "stands on line 3"),
    "field twice": (head("  - {input: a, output: b, output: c}\n"), ":3:", "given twice"),
    "field that is a list": (head("  - {input: a, output: b, [x]: c}\n"), ":3:", "is no text"),
    "name with spaces": ("name: my own\nexamples:\n" + "  - {input: a, output: b}\n", ":1:", "must be letters"),
    "empty field": (head('  - {input: a, output: ""}\n'), ":3:", "'output' is empty"),
    "missing field": (head("  - {input: a}\n"), ":3:", "'output' is missing"),
    "unknown field": (head("  - {input: a, output: b, ouput: c}\n"), ":3:", "unknown field 'ouput'"),
    "unknown top field": (head(GOOD, "nmae: x\n"), ":1:", "unknown field 'nmae'"),
    "empty category": ("name: own\nexamples: []\n", ":2:", "at least one entry"),
    "no examples": ("name: own\n", ":1:", "'examples' is missing"),
    "not a mapping": ("- 1\n- 2\n", ":1:", "expected fields"),
    "empty file": ("", ":1:", "expected fields"),
    "one example": (head(GOOD), "own.yaml", "has one example"),
    "not YAML": ("name: [own\n", ":2:", "not valid YAML"),
    "nested output": (head("  - {input: a, output: [b]}\n"), ":3:", "must be text"),
    "alias": ("name: &x own\nexamples: *x\n", "own.yaml", "aliases"),
    "not UTF-8": (b"name: \xff\xfe\n", "own.yaml", "not UTF-8"),
    "control character": (head('  - {input: "a\x07", output: b}\n'), "own.yaml", "not valid YAML"),
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
    write(tmp_path, head("  - {input: a}\n  - {output: b}\n"), "a.yaml")
    write(tmp_path, "name: x\n", "b.yaml")
    with pytest.raises(UsageError) as caught:
        patterns.load(tmp_path)
    assert len(str(caught.value).splitlines()) == 3


def test_a_category_in_two_files_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no pattern file"):
        patterns.load(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        patterns.load(tmp_path / "none.yaml")
    for name in ("a.yaml", "b.yaml"):
        write(tmp_path, PATTERNS, name)
    with pytest.raises(UsageError, match="in another file too"):
        patterns.load(tmp_path)


def test_a_large_file_loads(tmp_path):
    rows = "".join(f"  - {{input: key{i}, output: value}}\n" for i in range(10_000))
    started = time.perf_counter()
    assert len(patterns.load(write(tmp_path, head(rows))).categories["own"].items) == 10_000
    print(f"10,000 items in {time.perf_counter() - started:.2f} s")
