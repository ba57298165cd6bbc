"""The report's first screen: scorecard, when to use which, examples; for any subset of the ways of asking."""

import json
import re

import jsonschema
import numpy as np
import pytest

from engram_bench import stats
from engram_bench.data.ways import GROUPS, WAYS
from engram_bench.report import gate, html, plots, published
from engram_bench.report.examples import before_and_after
from engram_bench.report.markdown import render
from engram_bench.report.scorecard import choices, scorecard
from engram_bench.report.scorecard_text import score, terminal
from engram_bench.report.text import safe
from tests.test_report import SCHEMA, report, sample

OLD = ("seen", "rephrased", "heldout")
RIGHT = {  # share of right answers in every way
    "baseline": dict.fromkeys(WAYS, 0.0) | {"mention": 1.0, "contradicted": 0.8, "neighbour": 1.0},
    "lora": dict.fromkeys(WAYS, 0.96) | {"mention": 0.3, "contradicted": 0.5, "neighbour": 0.2, "applied": 0.6},
    "engram": dict.fromkeys(WAYS, 1.0) | {"paraphrased": 0.1, "combined": 0.5, "mention": 0.97, "heldout": 0.0},
}
SECONDS = {"baseline": 10.0, "lora": 20.0, "engram": 30.0}


def answers(variants=tuple(RIGHT), ways=tuple(WAYS), items=100, categories=("facts", "mine"), right=RIGHT, **changes):
    """A greedy answer of each variant to each of `items` items of each category in each way."""
    return [
        sample(name, f"{category}{n}", n < round(right[name][way] * items), category=category, split=way, **changes)
        for name in variants for way in ways for category in categories for n in range(items)
    ]  # fmt: skip


def variant(name, seconds=None, **config):
    """A variant's record; `seconds` of training, None for one that trains nothing."""
    train = seconds and {"seconds": seconds, "examples": 4, "epochs": 2, "losses": [2.0, 1.0], "seed": 0}
    trained = {"adapter_sha256": "ab" * 32 if train else None, "adapter_bytes": 4_200_000 if train else None}
    return {
        "name": name, "about": "", "config": {"name": name, "config": config or None}, "trainable_parameters": 5,
        "train": train, "cached": False, **trained,
    }  # fmt: skip


VARIANTS = [variant("baseline"), variant("lora", 700.0, rank=16), variant("engram", 50.0, span="key")]
KL = {"prompts": 2, "tokens": 30, "kl_max": 1.0, "top1_unchanged": 0.9}
COLLATERAL = [{**KL, "variant": "lora", "kl_mean": 1.8}, {**KL, "variant": "engram", "kl_mean": 0.0}]
MENTIONS = [{"variant": name, "prompts": 40, "told": stats.rate(k, 40), "unchanged": stats.rate(1, 40)}
            for name, k in (("lora", 28), ("engram", 1))]  # fmt: skip


def made(samples, variants=VARIANTS, categories=("facts", "mine"), **changes):
    run = {**report([])["run"], "evaluation_s": SECONDS}
    measured = {"collateral": COLLATERAL, "mentions": MENTIONS}
    return report(samples, categories, **{"variants": variants, "run": run, **measured, **changes})


def card(found, name):
    (row,) = [row for row in found["scorecard"] if row["variant"] == name]
    return row


def chosen(found):
    return {choice.need: choice for choice in choices(found)}


@pytest.fixture(scope="module")
def whole():
    """The report of a run that asked in all ways."""
    return made(answers())


@pytest.fixture(scope="module")
def old():
    """The report of a run that asked in the first three ways."""
    return made(answers(ways=OLD))


SUBSETS = {
    "all ways": answers(),
    "the first three": answers(ways=OLD),
    "one variant": answers(variants=["engram"]),
    "the baseline alone": answers(variants=["baseline"]),
    "one way": answers(ways=["neighbour"]),
    "no answer": [],
}


@pytest.mark.parametrize("samples", SUBSETS.values(), ids=SUBSETS)
def test_any_subset_of_ways_and_variants_is_told_on_every_page(samples, tmp_path):
    names = {s["variant"] for s in samples} or RIGHT
    found = made(samples, [v for v in VARIANTS if v["name"] in names], collateral=[], mentions=[])
    jsonschema.validate(json.loads(json.dumps(found)), SCHEMA)
    text = render(found, samples)
    assert re.findall("^## (.*)$", text, re.MULTILINE)[0] == "Scorecard"
    asked = {s["split"] for s in samples}
    assert all((f"{way.asked}\n\nRight is {way.right}." in text) == (name in asked) for name, way in WAYS.items())
    page = html.render(found, samples, plots.write(found, tmp_path))
    assert page.index("<h2>Scorecard") < page.index("<h2>When to use which") < page.index("<h2 id=")
    drawn = any(WAYS[way].group in GROUPS for way in asked)
    assert (tmp_path / "scorecard.png").exists() == drawn
    assert all(len(line) <= 100 for line in terminal(found))


def test_a_groups_figure_is_the_mean_of_its_ways_in_which_every_item_counts_once(whole):
    found = card(whole, "engram")["generality"]
    assert [(way["way"], way["n"], way["k"]) for way in found["ways"]] == [
        ("rephrased", 200, 200), ("paraphrased", 200, 20),
    ]  # fmt: skip
    assert found["rate"] == pytest.approx(0.55)
    rephrased, paraphrased = stats.wilson(200, 200), stats.wilson(20, 200)
    assert found["low"] == pytest.approx((rephrased.low + paraphrased.low) / 2)
    assert found["high"] == pytest.approx((rephrased.high + paraphrased.high) / 2)
    uneven = answers(["engram"], ["seen"], 90, ["facts"]) + answers(
        ["engram"], ["seen"], 10, ["mine"], right={"engram": {"seen": 0.0}}
    )
    seen = card(made(uneven), "engram")["reliability"]
    assert (seen["rate"], seen["low"]) == (pytest.approx(0.9), pytest.approx(stats.wilson(90, 100).low))


@pytest.mark.parametrize("together", [True, False])
def test_a_groups_interval_covers_the_mean_however_its_ways_are_correlated(together):
    rng, truth = np.random.default_rng(0), (0.95, 0.6)
    covered, base = 0, made([])
    for _ in range(400):
        drawn = rng.random((100, 1 if together else 2))
        right = (drawn < truth).sum(axis=0)
        cells = [{"variant": "engram", "category": "facts", "split": way, "n": 100, "exact": {"k": int(k)}}
                 for way, k in zip(("rephrased", "paraphrased"), right, strict=True)]  # fmt: skip
        found = card({"scorecard": scorecard({**base, "cells": cells}, [])}, "engram")["generality"]
        covered += found["low"] <= np.mean(truth) <= found["high"]
    assert covered >= 400 * 0.95 - 13, "13: three standard errors"


def test_what_is_true_by_construction_is_no_figure(whole):
    found = card(whole, "baseline")
    assert found["locality"]["by_construction"] == ["mention", "neighbour"]
    assert found["locality"]["rate"] is None
    assert score(found["locality"]) == "contradicted 80.0% [74–85], else by construction"
    assert found["kl"] == card(whole, "engram")["kl"] == {"mean": 0.0, "by_construction": True}
    assert card(whole, "lora")["kl"] == {"mean": 1.8, "by_construction": False}
    text = render(whole, [])
    table = text[text.index("## Mention: ") : text.index("## Contradicted: ")]
    assert table.count("| by construction ") == 3, "the baseline: two categories and both of them"
    assert not [c for c in whole["contrasts"] if c["split"] in ("mention", "neighbour")]
    assert [c for c in whole["contrasts"] if c["split"] == "contradicted"]
    without = card(made([s for s in answers() if s["split"] != "contradicted"]), "baseline")
    assert score(without["locality"]) == "by construction"


def test_a_keyed_memory_that_moved_unrelated_text_is_told_so():
    moved = made(answers(ways=OLD), collateral=[{**COLLATERAL[1], "kl_mean": 0.5}])
    assert card(moved, "engram")["kl"] == {"mean": 0.5, "by_construction": False}


def test_a_variant_that_was_asked_less_than_others_has_no_figure_to_compare():
    few = [s for s in answers() if (s["variant"], s["category"], s["split"]) != ("lora", "mine", "combined")]
    found = card(made(few), "lora")
    assert found["portability"]["rate"] is None
    assert score(found["portability"]) == "asked in part"
    assert found["generality"]["rate"] is not None
    gone = made([s for s in few if s["variant"] != "lora" or WAYS[s["split"]].group != "portability"])
    assert score(card(gone, "lora")["portability"]) == "not asked"


def test_costs_are_those_of_a_right_answer_to_a_question_about_a_trained_value(whole):
    found = card(whole, "lora")
    right = 2 * (96 * 4 + 60)  # five ways: seen, rephrased, paraphrased, combined, applied
    assert (found["asked"], found["right"]) == (1000, right)
    assert found["tokens_per_right"] == pytest.approx(4 * 1000 / right)
    assert found["seconds_per_right"] == pytest.approx(20 / 1800 * 1000 / right), "all nine ways took 20 s"
    assert (found["train_seconds"], found["adapter_bytes"]) == (700.0, 4_200_000)
    never = card(whole, "baseline")
    assert (never["tokens_per_right"], never["seconds_per_right"], never["train_seconds"]) == (None, None, None)
    counted = card(made(answers(prompt_tokens=10)), "lora")
    assert counted["tokens_per_right"] == pytest.approx(14 * 1000 / right)
    assert counted["prompt_tokens_counted"]
    assert not found["prompt_tokens_counted"]
    assert counted["token_efficiency"]["mean"] == pytest.approx(2 * right / (14 * 1000))


def test_bytes_are_those_of_one_trainings_adapter_or_of_the_facts_that_are_looked_up(whole):
    right = 2 * (96 * 4 + 60)
    assert card(whole, "lora")["bytes_per_right"] == pytest.approx(4_200_000 / right)
    assert card(whole, "baseline")["bytes_per_right"] is None
    twice = answers(["lora"]) + answers(["lora"], seed=1)
    assert card(made(twice), "lora")["bytes_per_right"] == pytest.approx(4_200_000 / right), "each seed has its own"
    store = [variant("baseline"), {**variant("retrieval"), "facts_bytes": 500}]
    found = made(answers(["baseline", "retrieval"], right={"retrieval": RIGHT["engram"], "baseline": RIGHT["engram"]}),
                 store, collateral=[], mentions=[])  # fmt: skip
    assert card(found, "retrieval")["bytes_per_right"] == pytest.approx(500 / (2 * (100 * 3 + 10 + 50)))
    jsonschema.validate(json.loads(json.dumps(found)), SCHEMA)
    text = render(found, [])
    assert re.search(r"\| retrieval .* 1 B ", text)
    assert re.search(r"\| baseline .* none +\| [\d.]+% +\|$", text, re.MULTILINE)
    assert [line for line in terminal(found) if line.startswith("retrieval") and line.endswith(" 1 B")]


def test_drawn_answers_take_time_and_are_no_answers_of_their_own():
    drawn = answers(variants=["lora"], ways=["seen"], sample=1)
    greedy = answers(variants=["lora"], ways=["seen"])
    found = card(made(greedy + drawn), "lora")
    assert (found["asked"], found["right"]) == (200, 192)
    assert found["seconds_per_right"] == pytest.approx(20 / 400 * 200 / 192)
    partial = {**report([])["run"], "evaluation_s": SECONDS, "partial": "200 of 400 answers"}
    assert card(made(greedy, run=partial), "lora")["seconds_per_right"] is None, "its time was for other answers"


def test_a_need_names_the_variants_whose_interval_shows_it(whole):
    found = chosen(whole)
    assert found["the facts must be recalled word for word as trained"].variants == ["lora", "engram"]
    assert found["asked in other words"].variants == ["lora"]
    assert found["several facts in one question, or used for something"].variants == []
    assert found["nothing else may change"].variants == ["engram"]
    assert found["train in under a minute"].variants == ["engram"]
    assert found["facts change often"].variants == []
    assert found["no training at all"].variants is None, "no variant without training was run"
    text = render(whole, [])
    assert re.search(r"used for something +\| not shown", text)
    assert re.search(r"no training at all +\| not asked", text)


@pytest.mark.parametrize(("items", "shown"), [(34, None), (36, ["engram"])])
def test_a_need_is_shown_by_the_intervals_bound_and_not_by_its_rate(items, shown):
    few = made(answers(["engram"], ["seen"], items, ["facts"]), [variant("engram", 50.0)], ["facts"])
    assert stats.wilson(items, items).low >= 0.9 or not shown
    assert (chosen(few)["train in under a minute"].variants or None) == shown


@pytest.mark.parametrize(("kl", "shown"), [(0.01, ["lora"]), (0.011, []), (None, None)])
def test_nothing_else_changes_if_unrelated_text_keeps_its_probabilities(kl, shown):
    samples = answers(["lora"], ["seen", "neighbour"], right={"lora": dict.fromkeys(WAYS, 1.0)})
    found = made(samples, VARIANTS[1:2], collateral=[{**COLLATERAL[0], "kl_mean": kl}] if kl else [])
    assert chosen(found)["nothing else may change"].variants == shown


@pytest.mark.parametrize(("prose", "code", "shown"), [(0.01, 0.01, ["lora"]), (0.01, 0.02, []), (0.02, 0.0, [])])
def test_nothing_else_changes_only_if_text_with_keys_keeps_its_probabilities_too(prose, code, shown):
    samples = answers(["lora"], ["seen", "neighbour"], right={"lora": dict.fromkeys(WAYS, 1.0)})
    told = {**KL, "variant": "lora", "words": 9, "keys": 1, "firings": None, "firings_per_1000_words": None}
    passages = [{**told, "kind": f"{kind} with keys", "kl_mean": kl} for kind, kl in (("prose", prose), ("code", code))]
    found = made(samples, VARIANTS[1:2], collateral=[{**COLLATERAL[0], "kl_mean": 0.0}], passages=passages)
    jsonschema.validate(found, SCHEMA)
    assert card(found, "lora")["kl_with_keys"] == max(prose, code)
    assert chosen(found)["nothing else may change"].variants == shown


def test_a_need_is_not_shown_by_a_mean_that_hides_a_way():
    hidden = {"engram": RIGHT["engram"] | {"paraphrased": 0.88}}
    found = made(answers(["engram"], ["rephrased", "paraphrased"], right=hidden), VARIANTS[2:])
    assert card(found, "engram")["generality"]["low"] > 0.9
    assert chosen(found)["asked in other words"].variants == []


def test_no_need_is_met_by_what_was_not_asked(old):
    found = chosen(old)
    assert found["asked in other words"].variants == ["lora", "engram"]
    assert found["asked in other words"].unasked == ["paraphrased"]
    assert found["several facts in one question, or used for something"].variants is None
    assert found["nothing else may change"].variants is None
    assert all(choice.variants is None for choice in choices(made([])))
    text = render(old, [])
    assert re.search(r"asked in other words +\| lora, engram \(paraphrased: not asked\)", text)


def test_a_variant_that_changes_nothing_and_knows_nothing_meets_no_need():
    silent = {"engram": RIGHT["baseline"]}
    found = chosen(made(answers(["engram"], right=silent), [variant("engram", 5.0, span="key")]))
    assert all(not choice.variants for choice in found.values())


def test_what_needs_no_training_serves_facts_that_change():
    store = [variant("baseline"), variant("store"), {**variant("dictionary"), "config": {"kind": "dictionary"}}]
    right = {name: dict.fromkeys(WAYS, 1.0) for name in ("baseline", "store", "dictionary")}
    found = chosen(made(answers(right, right=right), store, collateral=[], mentions=[]))
    assert found["no training at all"].variants == found["facts change often"].variants == ["store"]
    assert found["train in under a minute"].variants is None
    assert found["nothing else may change"].variants is None, "its KL was not measured"


def test_the_terminal_has_the_scorecard_in_a_hundred_columns(whole, old):
    names = ["a-variant-with-a-name-that-is-long-\x1b[31m", *RIGHT]
    right = {name: dict.fromkeys(WAYS, 1.0) for name in names}
    lines = terminal(made(answers(names, right=right), [variant(name, 1234.0) for name in names]))
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)
    lines = terminal(whole)
    assert [line for line in lines if line.startswith("lora") and "96 [92-98]" in line and " 1.8 " in line]
    assert [line for line in lines if line.startswith("baseline") and "no right answer" in line]
    assert all("portability" not in line for line in terminal(old))


def test_the_plot_has_a_panel_a_group_and_a_bar_a_variant(whole, old):
    figure = plots.scorecard(whole)
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == list(GROUPS)
    generality, locality = figure.axes[1], figure.axes[3]
    drawn = {bars.get_label(): bars for bars in generality.containers}
    found = card(whole, "engram")["generality"]
    (bar,) = drawn["engram"].lines[2][0].get_segments()
    assert bar[:, 0] == pytest.approx([100 * found["low"], 100 * found["high"]])
    assert [text.get_text() for text in locality.texts] == ["by construction"]
    assert "baseline" not in {bars.get_label() for bars in locality.containers}
    assert len(plots.scorecard(old).axes) == 2
    panels = {axis.get_title(): axis for axis in plots.exact(whole).axes}
    assert list(panels) == [*list(WAYS)[:-1], "held out"]
    drawn = {bars.get_label(): bars.lines[0].get_xdata() for bars in panels["mention"].containers}
    assert len(drawn["baseline"]) == 0, "its answer is the right one by definition"


def test_examples_show_a_right_and_a_wrong_answer_of_every_variant_in_every_way(whole):
    samples = answers()
    (found,) = before_and_after(whole, samples, safe)
    assert found.headers[3:] == ("baseline", "lora", "engram")
    shown = {(row[0], name, cell[0]) for row in found.rows
             for name, cell in zip(found.headers[3:], row[3:], strict=True)}  # fmt: skip
    assert shown == {("held out" if s["split"] == "heldout" else s["split"], s["variant"], mark(s)) for s in samples}
    assert ("paraphrased", "engram", "✗") in shown, "the memory's failures, too"
    assert len(found.rows) <= 3 * len(WAYS)
    page = html.render(whole, samples, {})
    assert "<h2>Before and after</h2>" in page


def mark(answered):
    """How an answer of `answers` begins in the table: with no mark where it is right by construction."""
    if answered["variant"] == "baseline" and answered["split"] in ("mention", "neighbour"):
        return answered["output"][0]
    return "✓" if answered["exact"] else "✗"


def test_a_variant_without_a_wrong_answer_is_named_with_the_ways(whole):
    (found,) = before_and_after(whole, answers(), safe)
    assert [point for point in found.points if point.startswith("engram")] == [
        "engram has no wrong answer to show in: seen, rephrased, applied, contradicted, neighbour."
    ]
    assert not any("baseline" in point for point in found.points), "what is right by construction is no success"
    assert found.points[0] in render(whole, answers())


def test_the_value_that_decides_is_in_the_cell():
    output = f"{'Well, let me see. ' * 3}It is red."
    samples = [sample("engram", "i0", True, split="combined", prompt=f"{'x' * 100} KEY:abc?", output=output)]
    (found,) = before_and_after(report(samples), samples, safe)
    assert "KEY" in found.rows[0][1]
    assert "It is red" in found.rows[0][-1]


def test_a_single_failure_among_many_is_an_example():
    samples = [sample("engram", f"i{n:03}", n != 77) for n in range(200)] + [
        sample("baseline", f"i{n:03}", n == 150) for n in range(200)
    ]
    (found,) = before_and_after(report(samples), samples, safe)
    assert [row[1] for row in found.rows] == ["q i000", "q i077", "q i150"]


def older(found):
    """A report of a version that had no scorecard."""
    return {key: value for key, value in found.items() if key != "scorecard"}


def test_old_reports_are_compared_gated_and_shown(tmp_path, whole, old):
    old = older(old)
    (tmp_path / "report.json").write_text(json.dumps(old))
    assert gate.read(tmp_path) == old
    found = gate.compare(old, whole, {"exact": 0.02})
    assert {row["verdict"] for row in found["rows"]} == {"unchanged"}
    assert {row["split"] for row in found["rows"]} == {*OLD, "seen+rephrased"}
    assert any("36 cells of this run are not in the baseline" in warning for warning in found["warnings"])
    text = render(old, [])
    assert "## Scorecard" not in text
    assert "## Seen" in text
    assert terminal(old) == []
    assert plots.scorecard(old) is None


def test_a_loss_in_a_new_way_fails_the_gate(tmp_path, whole):
    worse = {**RIGHT, "engram": RIGHT["engram"] | {"neighbour": 0.5}}
    found = gate.compare(whole, made(answers(right=worse)), {"exact": 0.02})
    assert {(row["variant"], row["split"]) for row in found["rows"] if row["verdict"] == "regressed"} == {
        ("engram", "neighbour")
    }
    made_with = {**whole, "gate": found}
    jsonschema.validate(json.loads(json.dumps(made_with)), SCHEMA)
    (tmp_path / "report.json").write_text(json.dumps(made_with))
    assert gate.read(tmp_path) == made_with


def test_published_figures_stand_beside_old_and_new_reports_alike():
    right = {"baseline": RIGHT["baseline"], "lora": RIGHT["lora"]}
    both = [made(answers(list(right), ways, categories=("facts", "mine"), right=right)) for ways in (OLD, WAYS)]
    rows = [published.section(found, safe).rows for found in (*both, older(both[0]))]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0][0][2].startswith("0.0% → 96.0% (n = 200;")
