"""report.json and report.md from records: the published schema, the numbers, and escaping of hostile text."""

import json
import re
from itertools import product
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from engram_bench.report.build import build
from engram_bench.report.markdown import render
from engram_bench.report.text import safe

SCHEMA = json.loads((Path(__file__).parent.parent / "engram_bench" / "report" / "schema.json").read_text())
HOSTILE = "a|b\n# head <script>alert(1)</script> `code` [x](http://e.vil) \x1b[31mred\x07 **bold** www.e.vil @you ~~s~~"


def sample(variant, item, exact, **changes):
    base = {
        "variant": variant, "category": "facts", "split": "seen", "item": item, "phrasing": "{input}", "seed": 0,
        "sample": 0, "prompt": f"q {item}", "expected": "right", "output": "right" if exact else "wrong", "tokens": 4,
        "canonical_tokens": 2, "exact": exact, "prefix": exact,
    }  # fmt: skip
    return {**base, **changes}


def report(samples, categories=("facts",), **changes):
    parts = {
        "run": {
            "started": "2026-01-01T00:00:00+00:00", "duration_s": 1.0, "evaluation_s": {"baseline": 1.0},
            "tokens_s": {"baseline": 9.0}, "peak_memory_mb": 5,
            "argv": ["pytest", "suites"], "git_commit": None, "profile": "default", "seeds": [0], "samples": 3,
        },
        "meta": {
            "backend": {
                "name": "torch", "device": "cpu", "dtype": "float32", "dtype_reason": "a reason", "batch_size": 8,
                "max_new_tokens": 9, "versions": {"torch": "2"},
            },
            "model": {"id": "tiny", "source": "test", "sha256": "0" * 64, "parameters": 10},
            "dataset": {
                "sha256": "1" * 64, "items": 9,
                "categories": {c: {"items": 9, "group": "core", "source": "test"} for c in categories},
            },
        },
        "variants": [
            {
                "name": name, "about": "", "config": {}, "trainable_parameters": 5, "adapter_sha256": "ab" * 32,
                "train": {"seconds": 1.5, "examples": 4, "epochs": 2, "losses": [2.0, 1.0], "seed": 0}, "cached": True,
            }
            for name in ("baseline", "engram")
        ],
        "samples": samples, "collateral": [], "thresholds": [],
    }  # fmt: skip
    return build(**{**parts, **changes})


BEFORE = [sample("baseline", f"i{n}", n < 2) for n in range(20)]
AFTER = [sample("engram", f"i{n}", n < 18) for n in range(20)]


def test_the_report_keeps_to_its_published_schema():
    drawn = [sample("engram", f"i{n}", True, sample=k) for n in range(20) for k in (1, 2)]
    collateral = [
        {"variant": "engram", "prompts": 2, "tokens": 30, "kl_mean": 0.1, "kl_max": 1.0, "top1_unchanged": 0.9}
    ]
    thresholds = [{"id": "x", "requirement": "y", "measured": 1.0, "low": 0.9, "passed": True}]
    made = report(BEFORE + AFTER + drawn, collateral=collateral, thresholds=thresholds)
    jsonschema.validate(json.loads(json.dumps(made)), SCHEMA)


def test_a_group_is_pooled_where_all_of_it_was_asked():
    both = [
        sample(v, f"{c}{n}", True, category=c)
        for v in ("baseline", "engram")
        for c in ("facts", "formats")
        for n in (1, 2)
    ]
    whole, part = (report(s, categories=("facts", "formats")) for s in (both, both[:-2]))
    assert [(c["variant"], c["n"]) for c in whole["cells"] if c["category"] == "all core"] == [
        ("baseline", 4), ("engram", 4),
    ]  # fmt: skip
    assert [c["variant"] for c in part["cells"] if c["category"] == "all core"] == ["baseline"]
    assert "all core" not in {c["category"] for c in part["contrasts"]}


def test_five_seeds_of_which_one_was_broken_off_are_compared_on_items_alone():
    samples = [sample("baseline", f"i{n}", False) for n in range(9)]
    samples += [sample("engram", f"i{n}", n != seed, seed=seed) for seed in range(5) for n in range(9)]
    whole, broken = report(samples)["contrasts"][0], report(samples[:-1])["contrasts"][0]
    assert whole["p"] != broken["p"]
    assert broken["n"] == 9


def test_cells_and_contrasts_hold_the_numbers():
    made = report(BEFORE + AFTER)
    exact = {c["variant"]: c["exact"] for c in made["cells"]}
    assert (exact["baseline"]["k"], exact["engram"]["k"]) == (2, 18)
    (contrast,) = made["contrasts"]
    assert contrast["difference"] == pytest.approx(0.8)
    assert contrast["p"] == pytest.approx(2 * 0.5**16)
    assert contrast["verdict"] == "improved"
    assert contrast["low"] < 0.8 < contrast["high"]


def test_a_loss_is_told_as_one():
    made = report([{**s, "variant": "engram"} for s in BEFORE] + [{**s, "variant": "baseline"} for s in AFTER])
    assert made["contrasts"][0]["verdict"] == "regressed"
    unfolded = re.sub("<details>.*?</details>", "", render(made, []), flags=re.DOTALL)
    assert "Worse than the baseline: engram on facts, seen, exact, by -80.0 points." in unfolded


def test_a_missed_threshold_and_a_run_broken_off_are_told_as_such():
    missed = {"id": "x", "requirement": "more", "measured": 0.5, "low": 0.4, "passed": False}
    made = report(BEFORE + AFTER, thresholds=[missed, {**missed, "id": "y", "passed": True}])
    made["run"]["complete"] = False
    unfolded = re.sub("<details>.*?</details>", "", render(made, []), flags=re.DOTALL)
    assert "Missed: x: more; 0.5." in unfolded
    assert "Missed: y" not in unfolded
    assert "This run did not finish" in unfolded


def test_a_greedy_answer_that_changes_when_asked_again_is_counted():
    answers = [
        sample("engram", f"i{n}", True, sample=k, output="other" if (n, k) == (0, -1) else "right")
        for n in range(4)
        for k in (0, -1, 1, 2)
    ]
    made = report(answers)
    (cell,) = made["cells"]
    assert (cell["greedy_repeats"]["n"], cell["greedy_repeats"]["same"]) == (4, 0.75)
    assert cell["exact"]["k"] == 4, "a repeat is no answer of its own"
    assert cell["consistency"]["n"] == 4
    assert ", greedy 75.0%" in render(made, answers)
    (single,) = report([a for a in answers if a["sample"] < 2])["cells"]
    assert single["consistency"] is None, "one drawn answer agrees with itself"


def test_outcomes_average_the_greedy_answers_of_an_items_seeds():
    answers = [
        sample("engram", "i0", True),
        sample("engram", "i0", False, seed=1),
        sample("engram", "i0", True, sample=1),
    ]
    assert report([sample("baseline", "i0", False), *answers])["outcomes"][1]["items"] == {"i0": 0.5}


def test_categories_of_a_group_are_pooled():
    other = [{**s, "category": "formats", "item": f"f{s['item']}"} for s in BEFORE + AFTER]
    made = report(BEFORE + AFTER + other, categories=("facts", "formats"))
    pooled = [c for c in made["cells"] if c["category"] == "all core"]
    assert [c["n"] for c in pooled] == [40, 40]
    assert {o["category"] for o in made["outcomes"]} == {"facts", "formats"}, "items are listed once"


def test_only_items_both_answered_are_compared():
    assert report(BEFORE[:5] + AFTER)["contrasts"][0]["n"] == 5


def test_two_builds_of_one_run_are_the_same_text():
    assert json.dumps(report(BEFORE + AFTER)) == json.dumps(report((BEFORE + AFTER)[::-1]))


def test_hostile_text_stays_text_in_a_table_cell():
    cell = safe(HOSTILE, 500)
    assert "\n" not in cell
    assert "\x1b" not in cell
    assert "<script" not in cell
    assert not re.search(r"(?<!\\)[|`*\[~]", cell)
    assert "www." not in cell


def test_the_report_survives_hostile_patterns():
    answers = [sample(v, "i0", False, prompt=HOSTILE, output=HOSTILE, expected=HOSTILE, split="rephrased")
               for v in ("baseline", "engram")]  # fmt: skip
    text = render(report(BEFORE + AFTER + answers), BEFORE + AFTER + answers)
    assert "<script" not in text
    assert "\x1b" not in text
    (row,) = [line for line in text.splitlines() if "alert" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6, "still a row of five cells"


def test_every_part_of_the_report_is_there():
    text = render(report(BEFORE + AFTER), BEFORE + AFTER)
    for title in ("What was run", "Seen", "Contrasts", "Training", "Published figures"):
        assert f"## {title}" in text
    assert "Interrupted" not in text
    assert "90.0% [70–97]" in text
    assert "2.000 → 1.000" in text


def test_replay_texts_and_their_divergence_are_in_the_training_table():
    made = report(BEFORE + AFTER)
    made["variants"][1]["train"] |= {"replay": 60, "replay_kl": 0.01234}
    jsonschema.validate(json.loads(json.dumps(made)), SCHEMA)
    section = render(made, BEFORE + AFTER).split("## Training")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("|")]
    header, _, without, with_replay = rows
    at = header.index("replay texts, KL at the end")
    assert (without[at], with_replay[at]) == ("", "60, 0.0123")


def a_run(rng, seeds=(0,), gain=0.0):
    """Two variants and the baseline; three lookups of 30 items, seen and applied, two draws; only chance differs."""
    samples = []
    for category in ("acronym", "capital", "port"):
        for name in ("baseline", "lora", "engram-keyed"):
            for seed in seeds if name != "baseline" else seeds[:1]:
                for n in range(30):
                    item = {"category": category, "seed": seed}
                    samples.append(sample(name, f"{category}{n}", bool(rng.random() < 0.5 + gain), **item))
                    used = bool(rng.random() < 0.5 + gain)
                    samples.append(sample(name, f"{category}{n}", used, split="applied", **item))
                    samples += [sample(name, f"{category}{n}", True, sample=k, output=rng.choice(["a", "b"]), **item)
                                for k in (1, 2)]  # fmt: skip
    variants = [{"name": name, "config": {}, "train": None} for name in ("baseline", "lora", "engram-keyed")]
    groups = {name: {"items": 30, "group": "lookups", "source": "t"} for name in ("acronym", "capital", "port")}
    return {"samples": samples, "variants": variants, "groups": groups}


def built(parts, seeds=(0,)):
    made = report([], variants=parts["variants"])
    meta = {key: made[key] for key in ("backend", "model", "dataset")}
    meta["dataset"] = {**meta["dataset"], "categories": parts["groups"]}
    return report(parts["samples"], variants=parts["variants"], meta=meta, run={**made["run"], "seeds": list(seeds)})


def test_the_primary_contrast_is_the_memory_against_a_lora_in_applied_questions_of_all_categories():
    made = built(a_run(np.random.default_rng(0)))
    found = made["primary"]
    assert [found[k] for k in ("a", "b", "category", "split", "metric", "n")] == [
        "lora", "engram-keyed", "all categories", "applied", "exact", 90,
    ]  # fmt: skip
    assert {c["a"] for c in made["contrasts"]} == {"baseline"}
    assert report(BEFORE + AFTER)["primary"] is None


@pytest.mark.slow
def test_a_report_of_nothing_but_chance_finds_something_in_at_most_one_of_twenty():
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        made = built(a_run(rng))
        found += any(c["verdict"] in ("improved", "regressed") for c in [made["primary"], *made["contrasts"]])
    assert found <= 9, "5 expected at most; 9 is the binomial's 97th percentile"


def test_five_seeds_widen_what_is_claimed_to_training_itself():
    parts = a_run(np.random.default_rng(2), seeds=(0, 1, 2, 3, 4))
    for s in parts["samples"]:
        if s["variant"] == "engram-keyed" and s["sample"] == 0:
            s["exact"] = s["seed"] < 3  # two trainings in five fail
    few = [s for s in parts["samples"] if s["seed"] in (0, 1, 2)]
    five, three = built(parts, (0, 1, 2, 3, 4))["primary"], built({**parts, "samples": few}, (0, 1, 2))["primary"]
    assert three["verdict"] == "improved", "these three, on these items"
    assert five["verdict"] == "inconclusive"
    assert five["high"] - five["low"] > 0.5


@pytest.mark.slow
def test_a_report_on_variants_that_do_nothing_keeps_to_five_percent():
    """Easy and hard items, the same for every variant: in at most 5% of reports does any contrast call one better."""
    rng = np.random.default_rng(0)
    categories = [f"c{n}" for n in range(4)]

    def null_report():
        samples = []
        for category in categories:
            for n, ease in enumerate(rng.beta(0.7, 0.7, size=30)):
                for variant, split in product(("baseline", "engram"), ("seen", "rephrased")):
                    drawn = rng.random(4) < ease
                    at = {"category": category, "split": split}
                    samples += [
                        sample(variant, f"{category}{n}", bool(right), sample=k, **at) for k, right in enumerate(drawn)
                    ]
        return report(samples, categories=categories)

    false_alarms = sum(
        any(c["verdict"] in ("improved", "regressed") for c in null_report()["contrasts"]) for _ in range(100)
    )
    assert false_alarms <= 9, "5 expected at most; 9 is the binomial's 97th percentile"
