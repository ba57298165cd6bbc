"""The gate on two paired reports: refused baselines, regressions that it catches, and its false-alarm rate."""

import json

import jsonschema
import numpy as np
import pytest

from engram_bench import cli, options
from engram_bench.errors import BaselineError, UsageError
from engram_bench.report import gate
from engram_bench.report.gate_text import section, summary
from engram_bench.report.markdown import render
from engram_bench.report.markdown import section as as_markdown
from engram_bench.report.text import safe
from tests.test_report import SCHEMA, report, sample

FAIL = {"exact": 0.02}


def a_report(wrong=(), items=200, draws=None, **changes):
    """One variant on `items` items, right but for those in `wrong`; `draws` gives each item's drawn answers.

    "a" is the right one of them.
    """
    samples = [sample("engram", f"i{n}", n not in wrong) for n in range(items)]
    for n, outputs in enumerate(draws or ()):
        samples += [sample("engram", f"i{n}", text == "a", sample=k + 1, output=text) for k, text in enumerate(outputs)]
    made = report(samples, **changes)
    made["model"]["prompt_sha256"] = "2" * 64
    return made


def verdicts(found):
    return {(row["category"], row["metric"]): row["verdict"] for row in found["rows"]}


def test_a_run_compared_with_itself_is_unchanged():
    found = gate.compare(a_report(wrong={1, 2}), a_report(wrong={1, 2}), FAIL)
    assert set(verdicts(found).values()) == {"unchanged"}
    assert gate.exit_code(found) == 0


def test_a_loss_beyond_the_margin_that_is_significant_fails_and_is_told():
    found = gate.compare(a_report(), a_report(wrong=set(range(12))), FAIL)
    assert verdicts(found)["facts", "exact"] == "regressed"
    assert gate.exit_code(found) == 1
    assert "**regressed**" in as_markdown(section(found, safe))
    back = gate.compare(a_report(wrong=set(range(12))), a_report(), FAIL)
    assert verdicts(back)["facts", "exact"] == "improved"
    assert gate.exit_code(back) == 0


def test_a_run_that_was_broken_off_is_no_baseline():
    whole, broken = a_report(), a_report()
    broken["run"]["complete"] = False
    gate.refuse(whole, gate.fingerprints(broken), "before.json")
    with pytest.raises(BaselineError, match="was interrupted"):
        gate.refuse(broken, gate.fingerprints(whole), "before.json")


def test_a_run_that_asked_nothing_does_not_replace_a_baseline(tmp_path):
    with pytest.raises(UsageError, match="has no answers"):
        gate.update(tmp_path / "baseline.json", report([]))
    assert not list(tmp_path.iterdir())


def test_a_significant_loss_within_the_margin_passes():
    found = gate.compare(a_report(items=1000), a_report(range(12), items=1000), FAIL)
    assert found["rows"][0]["p_holm"] < 0.05
    assert verdicts(found)["facts", "exact"] != "regressed"


def test_a_loss_too_small_to_tell_is_inconclusive_with_what_could_have_been_told():
    found = gate.compare(a_report(items=50), a_report({1, 2}, items=50), FAIL)
    assert verdicts(found)["facts", "exact"] == "inconclusive"
    assert "(MDE 1" in summary(found)
    assert gate.exit_code(found) == 0


def test_unchanged_needs_an_interval_within_the_margin():
    few, many = (gate.compare(a_report(items=n), a_report({1}, items=n), FAIL) for n in (40, 1000))
    assert verdicts(few)["facts", "exact"] == "inconclusive"
    assert verdicts(many)["facts", "exact"] == "unchanged"


def test_all_categories_together_show_what_none_shows_alone():
    def spread(wrong):
        samples = [
            sample("engram", f"{c}{n}", (c, n) not in wrong, category=c)
            for c in ("facts", "formats", "http") for n in range(40)
        ]  # fmt: skip
        return report(samples, categories=("facts", "formats", "http"))

    lost = {(c, n) for c in ("facts", "formats", "http") for n in range(4)}
    found = verdicts(gate.compare(spread(set()), spread(lost), FAIL))
    assert found.pop(("all categories", "exact")) == "regressed"
    assert set(found.values()) == {"inconclusive"}


def test_two_phrasings_of_a_fact_are_judged_together_and_count_once():
    def asked(seen, rephrased):
        return report([
            sample("engram", f"i{n}", n not in wrong, split=split)
            for split, wrong in (("seen", seen), ("rephrased", rephrased)) for n in range(100)
        ])  # fmt: skip

    found = gate.compare(asked(set(), set()), asked(set(range(6)), set(range(6, 12))), FAIL)
    (both,) = [row for row in found["rows"] if row["split"] == "seen+rephrased"]
    assert (both["n"], both["after"]) == (100, pytest.approx(0.94))
    assert both["verdict"] == "regressed"
    assert {row["verdict"] for row in found["rows"] if row is not both} == {"inconclusive"}


@pytest.mark.parametrize(
    ("part", "key", "word"),
    [("dataset", "sha256", "dataset"), ("model", "sha256", "model"), ("model", "prompt_sha256", "prompt")],
)
def test_a_baseline_of_another_measurement_is_refused_by_name(part, key, word):
    other = a_report()
    other[part][key] = "f" * 64
    with pytest.raises(BaselineError, match=rf"^b\.json: measured with another {word} \(ffffffffffff, now [^\n]*$"):
        gate.refuse(other, gate.fingerprints(a_report()), "b.json")
    gate.refuse(a_report(), gate.fingerprints(a_report()), "b.json")


def test_a_baseline_of_another_schema_is_refused():
    with pytest.raises(BaselineError, match="another schema"):
        gate.refuse({**a_report(), "schema_version": 2}, gate.fingerprints(a_report()), "b.json")


def test_a_baseline_rebuilt_from_a_part_of_its_answers_is_refused():
    part = a_report()
    part["run"]["partial"] = "3 of 204 answers"
    with pytest.raises(BaselineError, match=r"^b\.json: .*3 of 204 answers"):
        gate.refuse(part, gate.fingerprints(part), "b.json")


def test_a_slower_run_or_another_machine_is_warned_of_and_passes():
    slow = a_report()
    slow["run"]["evaluation_s"] = {"baseline": 9.0}
    slow["backend"]["device"] = "cuda"
    found = gate.compare(a_report(), slow, FAIL)
    assert len(found["warnings"]) == 2
    assert gate.exit_code(found) == 0
    assert all(warning.split(",")[0] in as_markdown(section(found, safe)) for warning in found["warnings"])


def test_two_runs_with_nothing_in_common_are_not_called_equal():
    other = report([sample("lora", "i0", True)], variants=[{**a_report()["variants"][0], "name": "lora"}])
    assert gate.exit_code(gate.compare(a_report(), other, FAIL)) == 4


def test_consistency_is_gated_where_both_count_the_same_answers():
    stable, loose = [["a"] * 3] * 60, [["a", "b", "c"]] * 60
    found = gate.compare(a_report(items=60, draws=stable), a_report(items=60, draws=loose), {"consistency": 0.05})
    assert verdicts(found)["facts", "consistency"] == "regressed"
    fewer = a_report(items=60, draws=loose)
    fewer["run"]["samples"] = 2
    found = gate.compare(a_report(items=60, draws=stable), fewer, {"consistency": 0.05, "exact": 0.02})
    assert ("facts", "consistency") not in verdicts(found)
    assert "was not compared: 3 sampled answers" in found["warnings"][-1]
    older = a_report(items=60, draws=loose)
    for outcome in older["outcomes"]:
        del outcome["agreement"]
    found = gate.compare(older, a_report(items=60, draws=stable), {"consistency": 0.05})
    assert found["rows"] == [], "its consistency was that of right and wrong answers"
    assert "right or wrong" in found["warnings"][-1]


def test_consistency_is_not_gated_if_only_one_run_asked_the_other_phrasings():
    def asked(*ways):
        samples = [sample("engram", f"i{n}", True, sample=k) for n in range(9) for k in range(4)]
        return report([*samples, *(sample("engram", f"i{n}", False, split=way) for n in range(9) for way in ways)])

    more, less, other = asked("rephrased", "paraphrased"), asked("rephrased"), asked("rephrased", "applied")
    found = gate.compare(more, less, {"consistency": 0.05})
    assert found["rows"] == []
    assert "in these ways: paraphrased" in found["warnings"][-1]
    assert {row["metric"] for row in gate.compare(less, other, {"consistency": 0.05})["rows"]} == {"consistency"}


def test_a_gated_report_keeps_to_the_schema_and_shows_the_gate():
    made = a_report(wrong=set(range(12)))
    made["gate"] = gate.compare(a_report(), made, FAIL)
    jsonschema.validate(json.loads(json.dumps(made)), SCHEMA)
    assert "## Comparison with the gate's baseline" in render(made, [])


@pytest.mark.slow
def test_honest_reruns_raise_no_alarm():
    """Answers that flip a coin on a fifth of the items, again and again, in five categories: alarms in at most 5%."""
    rng = np.random.default_rng(0)
    categories = [f"c{n}" for n in range(5)]

    def rerun():
        samples = []
        for category in categories:
            right = np.where(np.arange(40) < 8, rng.random(40) < 0.5, True)
            samples += [sample("engram", f"{category}{n}", bool(r), category=category) for n, r in enumerate(right)]
        return report(samples, categories=categories)

    first = rerun()
    alarms = [gate.exit_code(gate.compare(first, rerun(), {"exact": 0.0})) for _ in range(100)]
    assert sum(alarms) <= 9, "5 expected at most; 9 is the binomial's 97th percentile"


@pytest.fixture
def two(tmp_path):
    files = tmp_path / "a.json", tmp_path / "b.json"
    files[0].write_text(json.dumps(a_report()))
    files[1].write_text(json.dumps(a_report(wrong=set(range(12)))))
    return list(map(str, files))


def test_the_command_line_compares(two, tmp_path, capsys):
    assert cli.main(["compare", two[0], two[0]]) == 0
    assert cli.main(["compare", *two]) == 1
    assert "regressed: engram, facts, seen, exact: 100.0% -> 94.0%" in capsys.readouterr().out
    assert cli.main(["compare", *two, "--fail", "exact:10pt"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", *two, "--fail", "exact"]) == 2
    other = a_report()
    other["dataset"]["sha256"] = "e" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "torn.json").write_text(json.dumps(other)[:400])
    for name in ("other.json", "torn.json", "missing.json"):
        assert cli.main(["compare", str(tmp_path / name), two[1]]) == 4
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4, "a line each"


@pytest.mark.parametrize("text", ["", "exact", "exact:2", "speed:2pt", "exact:-2pt", "exact:2pt,"])
def test_a_margin_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"^--engram-gate-fail: .* is not a margin"):
        options.settle({"engram_gate_fail": text or " "}, lambda _: "")


def test_update_without_a_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--engram-gate-update: no file to write"):
        options.settle({"engram_gate_update": True}, lambda _: "")
    with pytest.raises(UsageError, match=r"--engram-gate-update: .* is a folder; name the file"):
        options.settle({"engram_gate_update": True, "engram_gate": str(tmp_path)}, lambda _: "")


def test_a_runs_folder_stands_for_its_report(tmp_path):
    gate.update(tmp_path / "report.json", a_report())
    assert gate.read(tmp_path) == gate.read(tmp_path / "report.json")


def test_an_update_replaces_the_baseline_whole(tmp_path):
    path = tmp_path / "reports" / "baseline.json"
    gate.update(path, a_report())
    gate.update(path, a_report(wrong={0}))
    assert gate.read(path)["outcomes"] == a_report(wrong={0})["outcomes"]
    assert [p.name for p in path.parent.iterdir()] == ["baseline.json"]
    with pytest.raises(UsageError, match="--engram-gate: "):
        gate.update(tmp_path / "reports" / "baseline.json" / "x.json", a_report())
