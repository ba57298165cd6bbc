"""Opponents that train nothing: what the untouched model is asked, and what it must not be told."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import pytest

from engram_bench.data import patterns
from engram_bench.data.items import Category, Item, PatternSet
from engram_bench.data.questions import Question
from engram_bench.errors import UsageError
from engram_bench.run import evaluate, readers
from engram_bench.run.readers import EXAMPLES, FOUND, Facts, examples, fitted, reader_of
from engram_bench.shipped import PATTERNS as SHIPPED
from tests.conftest import LORA, PATTERNS, TEMPLATE, make_checkpoint, needs_torch
from tests.running import run

WAYS = ("seen", "rephrased", "heldout")


@pytest.fixture(scope="module")
def shipped():
    """Some shipped facts, and every question of their three splits."""
    chosen = patterns.load(SHIPPED).without_extra().sample({"core": 16, "lookups": 12, "synthetic": 24, "world": 40})
    return Facts(chosen), evaluate.questions(chosen, [(name, way) for name in chosen.categories for way in WAYS])


def facts_of(*pairs, phrasings=("{input}", "What is {input}?")):
    """One category of trained items; one more is held out."""
    items = [Item(f"{n:016x}", "keys", key, value) for n, (key, value) in enumerate([("held", "out"), *pairs])]
    return Facts(PatternSet({"keys": Category("keys", "keys", "", phrasings, ("Give {input}",), tuple(items))}))


def ask(facts, key, way="seen"):
    category = facts.patterns.categories["keys"]
    (item,) = [item for item in category.items if item.input == key]
    return Question(way, item, *category.question(item, way), (item.output,))


def told(text, prompt):
    """The facts in a user turn that begins with the question."""
    first, *known = text.split("\n")
    assert first == prompt
    return [line.removeprefix("Known: ") for line in known]


def test_prompted_never_tells_the_fact_that_is_asked_for(shipped):
    facts, questions = shipped
    for question in questions:
        asked = readers.prompted(question, facts, EXAMPLES)
        assert asked.text == question.prompt
        assert len(asked.earlier) == EXAMPLES
        assert question.item.output not in [answer for _, answer in asked.earlier]
        assert not any(text.endswith(question.item.input) for text, _ in asked.earlier)


def test_solved_examples_are_items_that_the_run_leaves_out_in_a_trained_phrasing_and_few_sets_serve_a_category(shipped):
    facts, questions = shipped
    for name, category in facts.patterns.categories.items():
        asked = {key for item in category.items for key in (item.input, *item.names)}
        assert category.spare, name
        assert asked.isdisjoint(key for item in category.spare for key in (item.input, *item.names))
        shown = {(category.question(item, "seen")[1], item.output) for item in category.spare}
        told = {readers.prompted(q, facts, EXAMPLES).earlier for q in questions if q.item.category == name}
        assert {turn for turns in told for turn in turns} <= shown
        assert len(told) <= 3, name
    category = facts.patterns.categories["synthetic"]
    left_out = category.spare[0].input
    named = Question("neighbour", category.items[0], "{input}", f"Is {left_out} known?", ())
    assert not any(left_out in prompt for prompt, _ in readers.prompted(named, facts, EXAMPLES).earlier)


def test_examples_depend_on_the_seed_have_different_outputs_and_are_as_many_as_there_are():
    facts = facts_of(*[(f"k{n}", "same" if n < 6 else f"v{n}") for n in range(12)])
    category, item = facts.patterns.categories["keys"], facts.by_input["k3"]
    drawn = {tuple(e.input for e in examples(category, [item], EXAMPLES, seed)) for seed in range(5)}
    assert len(drawn) > 1
    assert all(len(keys) == EXAMPLES and not {f"k{n}" for n in range(6)} & set(keys) for keys in drawn)
    few = facts_of(("k1", "v1"), ("k2", "v2"))
    assert [e.input for e in examples(few.patterns.categories["keys"], [few.by_input["k1"]], EXAMPLES, 0)] == ["k2"]


def test_bm25_finds_the_fact_of_a_question_among_all_facts(shipped):
    facts, questions = shipped
    trained = [question for question in questions if question.split != "heldout"]
    found = sum(question.item in facts.ranked(question.prompt) for question in trained)
    assert found / len(trained) > 0.95
    assert facts.ranked("zyx wvu") == []


def test_bm25_finds_a_fact_without_its_key_to_the_letter():
    facts = facts_of(("the founder of Brellix", "Ada Vonn"), ("the colour of Brellix", "red"), ("CODE:ab 7", "green"))
    assert facts.ranked("who was it that was founder at brellix?")[0].output == "Ada Vonn"
    assert [item.output for item in facts.ranked("ab 7")] == ["green"], "words of one letter count"


@pytest.mark.parametrize(
    ("key", "asked"), [("🙂", "What does 🙂 mean?"), ("->", "->"), ("Ключ", "ключ?"), ("Straße", "die STRASSE")]
)
def test_bm25_finds_keys_of_symbols_and_of_any_alphabet(key, asked):
    assert facts_of(("🙃", "+"), (key, "?"), ("<-", "."), ("die", ".")).ranked(asked)[0].input == key


def test_retrieval_gives_what_was_found_and_shows_examples_of_the_same_form():
    facts = facts_of(*[(f"KEY:{n} of many", f"v{n}") for n in range(20)])
    asked = readers.retrieval(ask(facts, "KEY:7 of many", "rephrased"), facts, EXAMPLES)
    known = told(asked.text, "Give KEY:7 of many")
    assert len(known) == FOUND
    assert known[-1] == "KEY:7 of many = v7", "the best is next to the answer"
    assert len(asked.earlier) == EXAMPLES
    for text, answer in asked.earlier:
        assert text.count(" = ") == FOUND
        assert sum(line.endswith(f" = {answer}") for line in text.split("\n")) == 1


def test_an_example_whose_fact_is_not_found_gets_it_all_the_same():
    facts = facts_of(*[("same words", f"v{n}") for n in range(8)], ("other", "w"))
    asked = readers.retrieval(ask(facts, "other"), facts, EXAMPLES)
    assert all(f"= {answer}" in text and text.count(" = ") == FOUND for text, answer in asked.earlier)


def test_the_oracle_gives_the_right_fact_alone_and_none_of_an_item_that_was_never_trained():
    facts = facts_of(*[(f"KEY:{n}", f"v{n}") for n in range(9)])
    asked = readers.oracle(ask(facts, "KEY:3", "rephrased"), facts, EXAMPLES)
    assert told(asked.text, "Give KEY:3") == ["KEY:3 = v3"]
    assert all(text.count(" = ") == 1 and text.endswith(f" = {answer}") for text, answer in asked.earlier)
    assert readers.oracle(ask(facts, "held", "heldout"), facts, EXAMPLES).text == "held"


def test_a_question_of_two_keys_has_both_facts_from_the_oracle_and_neither_from_the_examples():
    facts = facts_of(*[(f"KEY:{n}", f"v{n // 2}") for n in range(30)])
    question = replace(ask(facts, "KEY:9"), prompt="KEY:9 and KEY:12, please")
    known = told(readers.oracle(question, facts, EXAMPLES).text, question.prompt)
    assert sorted(known) == ["KEY:12 = v6", "KEY:9 = v4"]
    for seed in range(9):
        earlier = readers.prompted(question, replace(facts, seed=seed), EXAMPLES).earlier
        assert len(earlier) == EXAMPLES
        assert not {"v4", "v6"} & {answer for _, answer in earlier}


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("KEY:ab", "red"),
        ("Look up KEY:ab, please", "red"),
        ("Look up KEY:ab cd", "blue"),
        ("Look up KEY:abc", None),
        ("MONKEY:ab", None),
        ("nothing", None),
    ],
)
def test_the_dictionary_finds_the_longest_whole_key(prompt, found):
    facts = facts_of(("KEY:ab", "red"), ("KEY:ab cd", "blue"))
    question = replace(ask(facts, "KEY:ab"), prompt=prompt)
    assert readers.dictionary(question, facts, EXAMPLES) == (prompt, (), found)
    assert readers.dictionary(question, Facts(PatternSet({})), EXAMPLES).answer is None


def test_what_the_dictionary_knows_is_not_asked():
    facts = facts_of(("KEY:ab", "red"), ("KEY:cd", "blue"))
    questions = [ask(facts, key) for key in ("KEY:ab", "KEY:cd", "held")]
    backend = Parrot()
    known = {q.prompt: a for q in questions if (a := readers.dictionary(q, facts, EXAMPLES).answer) is not None}
    prompts = {q.prompt: backend.prompt(q.prompt) for q in questions}
    planned = evaluate.plan(questions, prompts, batch_size=4, samples=0, sampled_items=None, longest={"keys": 8})
    options = {"seed": 0, "progress": lambda *_: None}
    batches = evaluate.answer(backend, "x", planned, known=known, **options)
    assert {s.item: s.exact for batch in batches for s in batch} == {f"{n:016x}": n > 0 for n in range(3)}
    assert backend.asked == ["held"]


class Parrot:
    """A backend whose answer is its prompt, as far as `answer` looks."""

    batch_size = 2

    def __init__(self):
        self.encoder, self.asked = self, []

    def prompt(self, text, earlier=()):
        before = tuple(ord(letter) for turn in earlier for part in turn for letter in part)
        return SimpleNamespace(ids=(*before, *map(ord, text)), earlier=len(before))

    def answer(self, text):
        return (*map(ord, text), 0)

    def decode(self, ids):
        return "".join(map(chr, ids))

    def generate(self, prompts, *_, **__):
        self.asked += [self.decode(prompt.ids) for prompt in prompts]
        return [list(prompt.ids) for prompt in prompts]


def test_prompts_of_the_same_earlier_turns_follow_each_other_in_a_batch():
    facts = facts_of(*[(f"KEY:{n}", f"v{n}") for n in range(20)])
    questions = [ask(facts, f"KEY:{n}") for n in range(20)]
    prompts = {}
    for question in questions:
        asked = readers.prompted(question, facts, EXAMPLES)
        prompts[question.prompt] = Parrot().prompt(asked.text, asked.earlier)
    planned = evaluate.plan(questions, prompts, batch_size=64, samples=2, sampled_items=None, longest={"keys": 8})
    turns = [[prompts[q.prompt].ids[: prompts[q.prompt].earlier] for q, _ in batch] for batch in planned.batches]
    assert [len(list(groupby(some))) for some in turns] == [len(set(some)) for some in turns]
    assert len(set(turns[0])) == 2, "two sets of examples"


def test_as_many_examples_as_fit_are_shown_and_a_prompt_that_never_fits_is_refused():
    facts = facts_of(*[(f"KEY:{n}", f"v{n}") for n in range(9)])
    question, encode = ask(facts, "KEY:3"), Parrot().prompt
    whole = len(fitted(readers.prompted, question, facts, encode, 10_000)[1].ids)
    for room, count in ((whole, EXAMPLES), (whole - 1, EXAMPLES - 1), (len(question.prompt), 0)):
        asked, prompt, most = fitted(readers.prompted, question, facts, encode, room)
        assert (most, len(asked.earlier), len(prompt.ids) <= room) == (count, count, True)
    with pytest.raises(UsageError, match="room for 3; shorten the facts, or leave out the variant"):
        fitted(readers.prompted, question, facts, encode, 3)


def test_kinds_name_their_readers():
    names = ("dictionary", "prompted", "retrieval", "oracle")
    assert [reader_of(name) for name in names] == [getattr(readers, name) for name in names]
    assert reader_of("lora") is None


@needs_torch
def test_a_run_asks_the_model_in_all_these_ways(tmp_path):
    """A context of 256 tokens is too short for all examples, which is said once for each variant."""
    (tmp_path / "colours.yaml").write_text(PATTERNS)
    args = [
        "--engram-model", make_checkpoint(tmp_path / "model"), "--engram-patterns", tmp_path / "colours.yaml",
        "--engram-variants", "prompted,retrieval,retrieval-oracle", "--engram-samples", "2",
        "--engram-backend", "cpu", "--engram-report", tmp_path / "runs", "-k", "test_categories",
    ]  # fmt: skip
    result = run(*args, ENGRAM_BENCH_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stdout
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    assert [(v["name"], v["config"]["control"]) for v in report["variants"]] == [
        ("baseline", False), ("prompted", False), ("retrieval", False), ("retrieval-oracle", True),
    ]  # fmt: skip
    cells = {(cell["variant"], cell["split"]) for cell in report["cells"]}
    assert {("prompted", "seen"), ("retrieval", "rephrased"), ("retrieval-oracle", "heldout")} <= cells
    assert result.stdout.count("retrieval: 18 of 18 prompts have fewer than 5 solved examples") == 1, result.stdout


@needs_torch
def test_a_model_that_takes_no_earlier_turns_is_refused_by_the_variants_name_before_training(tmp_path):
    (tmp_path / "colours.yaml").write_text(PATTERNS)
    (tmp_path / "lora.yaml").write_text(LORA)
    model = make_checkpoint(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% set messages = messages[-1:] %}" + TEMPLATE)
    args = [
        "--engram-model", model, "--engram-patterns", tmp_path / "colours.yaml", "--engram-backend", "cpu",
        "--engram-variants", f"{tmp_path / 'lora.yaml'},prompted", "--engram-report", tmp_path / "runs",
    ]  # fmt: skip
    result = run(*args, ENGRAM_BENCH_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 2
    assert "variant prompted: the model's chat template takes no earlier turns" in result.stdout + result.stderr
    assert "loss" not in result.stdout


def test_retrieval_does_not_start_jax(tmp_path):
    """It would take three quarters of a GPU's memory. What imports it afterwards finds it all the same."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('jax starts')")
    (tmp_path / "jax" / "lax.py").write_text("top_k = print")
    code = """if True:
        from engram_bench import shipped
        from engram_bench.data import patterns
        from engram_bench.run.readers import Facts
        print(len(Facts(patterns.load(shipped.PATTERNS)).ranked("Which colour has Vastrel?")), "found")
        import jax.lax
    """
    path = os.pathsep.join([str(tmp_path), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.splitlines() == ["5 found", "jax starts"]
