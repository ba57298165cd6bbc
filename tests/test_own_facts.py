"""Somebody's own facts: few of them, and keys that begin or end alike; the same in torch and MLX."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from engram_bench import variants
from engram_bench.data.items import Category, Item
from tests.conftest import ENGRAM, in_float32, quiet

FRAMEWORKS = [
    "torch",
    pytest.param("mlx", marks=pytest.mark.skipif(find_spec("mlx") is None, reason="MLX is not installed")),
]
STREETS = ["oak", "elm", "ash", "fir", "yew", "bay", "box", "fig", "nut", "pea", "rye", "tea", "cob", "sap", "bud",
           "pod", "ivy", "hop", "gum", "may"]  # fmt: skip
END_ALIKE = "Which door on {} lane opens after eight in the evening for those who work late and have no key?"
BEGIN_ALIKE = "Which door opens after eight in the evening for those who work late and have no key on {} lane?"
PHRASINGS = ("{input}", "Tell me: {input}", "Q: {input} A:")


def facts(question, count):
    """Keys of some twenty words that differ in one of them, and values of one or two tokens."""
    texts = [question.format(f"{street}{n}") for n in (1, 2) for street in STREETS][:count]
    items = [Item(str(n), "doors", text, f"{n + 10}") for n, text in enumerate(texts)]
    return Category("doors", "doors", "", PHRASINGS, ("Given {input}, what then?",), tuple(items))


@pytest.fixture(params=FRAMEWORKS)
def model(request, checkpoint):
    if request.param == "torch":
        return in_float32(checkpoint)
    from engram_bench.backends.mlx.backend import MlxModel

    return MlxModel(checkpoint, "cpu")


def recipe(**more):
    variant = variants.parse(ENGRAM, "test")
    training = replace(variant.training, lr=3e-3, table_lr=0.2, steps=[10, 400], **more)
    return replace(variant, training=training)


def right(model, variant, folder, category, phrasing):
    """Share of trained items whose greedy answer is their value."""
    items = category.split("seen")
    prompts = [model.encoder.prompt(phrasing.replace("{input}", item.input)) for item in items]
    with model.attached(model.load_adapter(variant, folder)):
        answers = [model.encoder.decode(ids) for ids in model.generate(prompts, 6)]
    return sum(answer == item.output for answer, item in zip(answers, items, strict=True)) / len(items)


@pytest.mark.parametrize("question", [END_ALIKE, BEGIN_ALIKE], ids=["end", "begin"])
def test_forty_long_keys_that_begin_or_end_alike_are_told_apart(model, question, tmp_path):
    category, variant = facts(question, 40), recipe(epochs=1)
    assert min(len(model.encoder.answer(item.input)) for item in category.items) > 20
    training = model.train(variant, category.training_examples(), 0, tmp_path, quiet)
    assert training.ended_early
    assert training.learned >= 0.98
    assert right(model, variant, tmp_path, category, PHRASINGS[0]) == 1
    assert right(model, variant, tmp_path, category, category.rephrased[0]) == 1


def test_a_handful_of_facts_is_learned_in_no_more_steps_than_it_takes(model, tmp_path):
    category = facts(BEGIN_ALIKE, 5)
    training = model.train(recipe(epochs=1), category.training_examples(), 0, tmp_path, quiet)
    assert training.ended_early
    assert 10 <= training.steps < 400
    assert right(model, recipe(epochs=1), tmp_path, category, category.rephrased[0]) == 1
