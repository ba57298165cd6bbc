"""What answers amount to: consistency and correctness, agreement, forms, token efficiency; by item and by cell."""

import jsonschema
import pytest

from engram_bench import metrics, stats
from engram_bench.data import patterns
from engram_bench.data.questions import EXACT, questions
from engram_bench.data.ways import VALUED, WAYS
from engram_bench.report import html, measures
from engram_bench.report.markdown import render
from engram_bench.shipped import PATTERNS
from tests.test_report import SCHEMA, report, sample


def about(item, *outputs, variant="engram", **changes):
    """Answers to a seen question, the greedy one first, then drawn ones; right is "right"."""
    return [
        sample(variant, item, output == "right", sample=k, output=output, **changes)
        for k, output in enumerate(outputs)
    ]  # fmt: skip


def asked_in(way, item, output, **changes):
    """A greedy answer in another way."""
    return about(item, output, split=way, **changes)


def cell(made, variant="engram", split="seen", category="facts"):
    (found,) = [c for c in made["cells"] if (c["variant"], c["split"], c["category"]) == (variant, split, category)]
    return found


def test_agreement_is_the_share_of_the_commonest():
    assert metrics.agreement(["a", "a ", "b"]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no samples"):
        metrics.agreement([])


def test_who_always_says_the_same_wrong_thing_agrees_and_is_not_consistent():
    made = cell(report(about("i0", "wrong", "wrong", "wrong", "wrong")))
    assert made["agreement"]["mean"] == 1
    assert made["consistency"]["mean"] == 0


def test_consistency_counts_the_right_answers_of_all_phrasings_and_draws():
    samples = [
        *about("i0", "right", "right", "right", "wrong"),
        *asked_in("rephrased", "i0", "right"),
        *asked_in("paraphrased", "i0", "wrong"),
        *asked_in("applied", "i0", "wrong"),
        *asked_in("heldout", "i9", "wrong"),
        sample("engram", "i0", False, sample=-1),
        *about("i1", "right", "right", "right", "right"),
    ]
    made = report(samples)
    shares = {o["split"]: o["consistency"] for o in made["outcomes"]}
    assert shares["seen"] == {"i0": pytest.approx(4 / 6), "i1": 1.0}
    assert not any(found for split, found in shares.items() if split != "seen")
    assert cell(made)["consistency"]["mean"] == pytest.approx(5 / 6)
    assert cell(made)["consistency"]["n"] == 2
    assert cell(made, split="rephrased")["consistency"] is None


def test_an_item_for_which_nothing_was_drawn_has_no_consistency():
    made = report([*about("i0", "right", "right", "right"), *about("i1", "right"), *about("i2", "right", "right")])
    assert made["outcomes"][0]["consistency"] == made["outcomes"][0]["agreement"] == {"i0": 1.0}


def test_a_groups_consistency_counts_phrasings_that_only_some_of_its_categories_have():
    samples = [
        *about("i0", "right", "right", "right"),
        *asked_in("paraphrased", "i0", "wrong"),
        *about("f0", "right", "right", "right", category="formats"),
    ]
    made = report(samples, categories=("facts", "formats"))
    assert cell(made, category="all core")["consistency"]["mean"] == pytest.approx((3 / 4 + 1) / 2)


@pytest.mark.parametrize("n", [8, 10])
@pytest.mark.parametrize("share", [1.0, 5 / 6])
def test_eight_items_right_in_nearly_every_answer_are_shown_to_beat_a_baseline_that_has_none(n, share):
    (found,) = stats.compare_all([stats.Paired([0.0] * n, [share] * n)])
    assert found.difference.value == pytest.approx(share)
    assert found.difference.low >= 0.2
    (weak,) = stats.compare_all([stats.Paired([0.0] * n, [0.4] * n)])
    assert weak.difference.low < 0.2


def test_a_contrast_in_consistency_is_about_right_answers():
    """The baseline agrees with itself on every item; two more right answers in three are a difference all the same."""
    baseline = [s for n in range(10) for s in about(f"i{n}", *["wrong"] * 4, variant="baseline")]
    engram = [s for n in range(10) for s in about(f"i{n}", *["right"] * 3, "wrong")]
    (found,) = [c for c in report(baseline + engram)["contrasts"] if c["metric"] == "consistency"]
    assert found["difference"] == pytest.approx(0.75)
    assert found["verdict"] == "improved"


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("Paris", False),
        ("The capital of France is Paris.", True),
        ("it is paris", True),
        ("Parisian", False),
        ("London", False),
        ("", False),
    ],
)
def test_a_right_value_in_another_form_is_not_a_wrong_value(output, found):
    assert metrics.value_only(output, "Paris") is found


def test_the_counts_of_forms_are_of_greedy_answers_in_the_ways_whose_answer_is_the_value():
    samples = [
        *about("i0", "The answer is RIGHT.", "The answer is right.", "wrong"),
        *about("i1", "wrong"),
        *about("i2", "right"),
        *about("i2", "wrong", seed=1),
        *about("i3", "right."),
        *asked_in("mention", "i0", "right."),
    ]
    made = report(samples)
    assert cell(made)["value_only"]["k"] == 2
    assert cell(made)["exact"]["k"] == 0.5
    assert cell(made, split="mention")["value_only"] is None
    (row,) = [line for line in render(made, []).splitlines() if line.startswith("| seen ") and " 50.0% [" in line]
    assert [text.split("[")[0].strip() for text in row.split("|")[2:-1]] == [
        "engram",
        "4",
        "12.5%",
        "50.0%",
        "37.5%",
    ]


def test_the_ways_whose_answer_is_the_value_are_those_asked_with_the_exact_rule():
    category = patterns.load(PATTERNS).categories["capital"]
    rules = {way: {question.rule for question in questions(category, way, 3)} for way in WAYS}
    assert all(rules.values())
    assert {way for way, found in rules.items() if found == {EXACT}} == set(VALUED)


def test_token_efficiency_is_useful_tokens_over_all_spent():
    """Two tokens of each right answer are useful; each answer has four and its prompt six."""
    samples = [sample("engram", f"i{n}", n < 15, prompt_tokens=6) for n in range(20)]
    samples += [sample("engram", "i0", True, sample=1, prompt_tokens=600)]
    found = cell(report(samples))["token_efficiency"]
    assert found["mean"] == pytest.approx(15 * 2 / (20 * 10))
    assert found["low"] < found["mean"] < found["high"]
    assert found["prompt_tokens_counted"]


def test_token_efficiency_has_no_cap_and_says_if_prompts_were_not_recorded():
    older = [sample("engram", f"i{n}", True, tokens=1, canonical_tokens=3) for n in range(20)]
    found = cell(report(older))["token_efficiency"]
    assert (found["mean"], found["prompt_tokens_counted"]) == (3, False)
    assert found["low"] < 3 <= found["high"]
    part = [*older, sample("engram", "i20", True, prompt_tokens=6)]
    assert not measures.token_efficiency(part)["prompt_tokens_counted"]
    empty = measures.token_efficiency([sample("engram", "i0", False, tokens=0)])
    assert (empty["mean"], empty["low"], empty["high"]) == (0, 0, 1)


def test_token_efficiency_is_a_ratio_of_sums():
    samples = [sample("engram", "long", False, tokens=90), sample("engram", "short", True, tokens=2)]
    assert cell(report(samples))["token_efficiency"]["mean"] == pytest.approx(2 / 92)


def variant(name):
    return {**report([])["variants"][0], "name": name}


def beside_retrieval(wrong, items=200, split="rephrased"):
    samples = [sample("retrieval", f"i{n}", True, split=split) for n in range(items)]
    samples += [sample("engram-keyed", f"i{n}", n >= wrong, split=split) for n in range(items)]
    return report(samples, variants=[variant("retrieval"), variant("engram-keyed")])


@pytest.mark.parametrize(
    ("wrong", "items", "shown"),
    [(0, 200, "shown"), (40, 200, "not shown"), (10, 200, "inconclusive"), (0, 8, "inconclusive")],
)
def test_whether_a_variant_is_no_worse_than_retrieval_is_told_by_the_interval(wrong, items, shown):
    made = beside_retrieval(wrong, items)
    (found,) = made["non_inferiority"]
    assert (found["a"], found["b"], found["n"], found["margin"]) == ("retrieval", "engram-keyed", items, 0.05)
    assert found["difference"] == pytest.approx(-wrong / items)
    assert found["no_worse"] == shown
    jsonschema.validate(made, SCHEMA)
    assert made["thresholds"] == [], "it is told, not asserted"
    text = render(made, [])
    assert f"1 comparisons, no worse: 1 {shown}" in text
    assert "a loss of 5 points or more" in text
    assert "<h2>No worse than retrieval</h2>" in html.render(made, [], {})


def test_retrieval_is_compared_on_questions_about_trained_values_only():
    assert beside_retrieval(0, split="mention")["non_inferiority"] == []
    assert beside_retrieval(0, split="heldout")["non_inferiority"] == []
    alone = report([sample("engram", "i0", True)])
    assert alone["non_inferiority"] == []
    assert "No worse than retrieval" not in render(alone, [])


def test_retrieval_answers_once_for_all_training_seeds():
    samples = [sample("retrieval", f"i{n}", True) for n in range(20)]
    samples += [sample("engram-keyed", f"i{n}", seed > 1, seed=seed) for n in range(20) for seed in range(5)]
    few = [s for s in samples if s["seed"] < 3]
    variants = [variant("retrieval"), variant("engram-keyed")]
    (five,), (three,) = (report(some, variants=variants)["non_inferiority"] for some in (samples, few))
    assert five["difference"] == pytest.approx(-0.4)
    assert five["low"] < -0.95, "two trainings in five lost everything"
    assert three["low"] > -0.9


TRAINED = {"seconds": 1.0, "examples": 1, "epochs": 1, "losses": [0.1], "seed": 0, "backend": "torch"}


def trained_on(name, questions, lr=1):
    config = {"kind": "lora", "config": {"rank": 4}, "training": {"lr": lr}, "questions": questions}
    return {**variant(name), "config": config, "train": TRAINED}


def on_both(variants, right=(10, 70)):
    """Answers of two variants to 100 items of two categories, so many of them right."""
    samples = [
        sample(v["name"], f"i{n}", n < hits, split="mention", category=("facts", "formats")[n % 2])
        for v, hits in zip(variants, right, strict=True)
        for n in range(100)
    ]
    return report(samples, variants=variants)


def test_what_the_rich_training_brings_is_told_over_all_categories():
    made = on_both([trained_on("few", "bare"), trained_on("many", "rich")])
    (found,) = made["trainings"]
    assert (found["a"], found["b"], found["split"], found["n"]) == ("few", "many", "mention", 100)
    assert (found["bare"], found["rich"]) == (0.1, 0.7)
    assert found["difference"] == pytest.approx(0.6)
    jsonschema.validate(made, SCHEMA)
    text = render(made, [])
    assert "What the training questions bring" in text
    assert "| many | mention | 100 | 10.0% | 70.0% | +60.0 [" in " ".join(text.split())
    assert "<h2>What the training questions bring</h2>" in html.render(made, [], {})


def test_a_variant_without_questions_of_its_own_is_trained_on_the_runs():
    variants = [trained_on("lora", ""), trained_on("other", "rich")]
    made = on_both(variants)
    assert made["dataset"].get("training", "bare") == "bare"
    assert [(c["a"], c["b"]) for c in made["trainings"]] == [("lora", "other")]


def test_variants_that_differ_in_more_than_their_questions_are_no_pair():
    assert on_both([trained_on("few", "bare"), trained_on("many", "rich", lr=2)])["trainings"] == []
    assert on_both([trained_on("few", "rich"), trained_on("many", "rich")])["trainings"] == []


ROUTED = [
    {
        "prompt": "CAPITAL:France", "confidence": 1.0, "route": "memory", "key": "CAPITAL:France", "trained": trained,
        "variant": "engram", "untouched": "A country | in Europe", "output": "Paris",
    }
    for trained in (True, False)
]  # fmt: skip


def test_the_routing_table_is_on_both_pages_and_marks_what_was_not_trained():
    made = report([], routed=ROUTED)
    jsonschema.validate(made, SCHEMA)
    section = render(made, []).split("## Routing, end to end")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if "1.0" in line]
    assert [", not trained in this run" in row for row in rows] == [False, True]
    assert all(r"A country \| in Europe" in row and "Paris" in row and "memory" in row for row in rows)
    page = html.render(made, [], {})
    assert "<h2>Routing, end to end</h2>" in page
    assert "<td>A country | in Europe</td>" in page
