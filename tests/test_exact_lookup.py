"""Exact lookup: the longest whole key wins; the dictionary answers itself, retrieval only extends the prompt."""

import pytest

from engram_bench.data.items import Item
from engram_bench.run import evaluate
from engram_bench.run.evaluate import Question
from engram_bench.run.exact_lookup import ExactLookup

ITEMS = tuple(
    Item(str(n), "keys", key, value) for n, (key, value) in enumerate([("KEY:ab", "red"), ("KEY:ab cd", "blue")])
)


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
def test_the_longest_whole_key_is_found(prompt, found):
    assert ExactLookup("dictionary", ITEMS).answer(prompt) == found


def test_no_pairs_know_nothing():
    assert ExactLookup("dictionary", ()).answer("KEY:ab") is None


def test_retrieval_puts_the_answer_into_the_prompt_and_leaves_others_alone():
    lookup = ExactLookup("retrieval", ITEMS)
    asked = lookup.prompt("Look up KEY:ab")
    assert asked.startswith("Look up KEY:ab")
    assert "red" in asked
    assert "blue" not in asked
    assert lookup.answer("Look up KEY:ab") is None
    assert lookup.prompt("hello") == "hello"


class Parrot:
    """A backend whose answer is its prompt, as far as `answer` looks."""

    batch_size = 2

    def __init__(self):
        self.encoder, self.asked = self, []

    def prompt(self, text):
        return type("Encoded", (), {"ids": tuple(map(ord, text))})()

    def answer(self, text):
        return (*map(ord, text), 0)

    def decode(self, ids):
        return "".join(map(chr, ids))

    def generate(self, prompts, *_, **__):
        self.asked += [self.decode(prompt.ids) for prompt in prompts]
        return [list(prompt.ids) for prompt in prompts]


@pytest.mark.parametrize(("kind", "asked"), [("none", 3), ("dictionary", 1), ("retrieval", 3)])
def test_the_model_is_asked_what_the_dictionary_does_not_know(kind, asked):
    other = Item("9", "keys", "KEY:zz", "?")
    questions = [Question("seen", item, "{input}", item.input) for item in (*ITEMS, other)]
    backend, lookup = Parrot(), ExactLookup(kind, ITEMS)
    prompts = {q.prompt: backend.encoder.prompt(lookup.prompt(q.prompt)) for q in questions}
    known = {q.prompt: text for q in questions if (text := lookup.answer(q.prompt)) is not None}
    planned = evaluate.plan(questions, prompts, batch_size=4, samples=0, sampled_items=None)
    options = {"seed": 0, "max_new_tokens": 9, "progress": lambda *_: None}
    batches = evaluate.answer(backend, "x", planned, known=known, **options)
    right = {sample.prompt: sample.exact for batch in batches for sample in batch}
    assert len(backend.asked) == asked
    assert right == {"KEY:ab": kind == "dictionary", "KEY:ab cd": kind == "dictionary", "KEY:zz": False}
    assert any("red" in prompt for prompt in backend.asked) == (kind == "retrieval")
