"""The scorecard: one row per variant of what it recalls, what it changes elsewhere, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engram_bench import stats
from engram_bench.data.ways import GROUPS, RECALL, WAYS
from engram_bench.records import BASELINE, Record, Report, is_pooled
from engram_bench.report.measures import greedy, prompts_counted, spent, token_efficiency
from engram_bench.report.views import by_construction, looks_for_keys

SURE = 0.9  # "shown": the lower bound of each way's interval is here or above
STILL = 0.01  # nats per token on unrelated text that count as no change
MINUTE, AT_ONCE = 60.0, 10.0  # seconds of training


def scorecard(report: Report, samples: Sequence[Record]) -> list[Record]:
    """One row per variant, in the order of the run; schema.json describes its keys.

    Args:
        report: report.json, at least its run, variants, cells, collateral and mentions.
        samples: lines of samples.jsonl, for the tokens of answers.
    """
    moved = {c["variant"]: c["kl_mean"] for c in report["collateral"]}
    near: dict[str, float] = {}  # of the kinds of running text with keys, the one that changes more
    for passage in report.get("passages", ()):
        near[passage["variant"]] = max(passage["kl_mean"], near.get(passage["variant"], 0.0))
    recited = {m["variant"]: {"n": m["prompts"], **m["told"]} for m in report["mentions"]}
    seconds = (
        {} if report["run"].get("partial") else report["run"].get("evaluation_s", {})
    )  # for the answers that exist
    by_variant: dict[str, list[Record]] = {}
    for sample in samples:
        by_variant.setdefault(sample["variant"], []).append(sample)
    return [
        {
            "variant": (name := variant["name"]),
            **{group: _score(report, name, group) for group in GROUPS},
            "kl": _kl(variant, moved.get(name)),
            "kl_with_keys": near.get(name),
            "recited": recited.get(name),
            "train_seconds": variant["train"]["seconds"] if variant["train"] else None,
            "adapter_bytes": variant.get("adapter_bytes"),
            **_per_right_answer(variant, by_variant.get(name, []), seconds.get(name)),
        }
        for variant in report["variants"]
    ]


def _score(report: Report, variant: str, group: str) -> Record | None:
    """A variant's right answers in a group of ways: the mean of the ways' rates, with a 95% interval.

    A way's rate pools its categories, so that each item counts once. The interval's bounds are the means of the ways'
    Wilson bounds. Ways ask about the same items, so their rates are correlated by an unknown amount; these bounds are
    those for full correlation (Zou & Donner 2008 with r = 1). With less correlation, they cover more than 95%.

    Returns:
        The score; None if the variant was asked nothing of the group. No rate is given where only a part of what other
        variants answered was asked, because it would not compare, or where a way is right by construction.
    """
    cells = [c for c in report["cells"] if WAYS[c["split"]].group == group and not is_pooled(c["category"])]
    asked: dict[str, set[str]] = {way: set() for way in WAYS}
    for cell in cells:
        asked[cell["split"]].add(cell["category"])
    given = [way for way in WAYS if asked[way] and by_construction(variant, way)]
    ways, complete = [], True
    for way in (way for way in WAYS if asked[way] and way not in given):
        ours = [c for c in cells if (c["split"], c["variant"]) == (way, variant)]
        complete &= {c["category"] for c in ours} == asked[way]
        if ours:
            n, k = sum(c["n"] for c in ours), sum(c["exact"]["k"] for c in ours)
            ways.append({"way": way, "n": n, **stats.rate(k, n)})
    if not (ways or given):
        return None
    bounds = ("rate", "low", "high")
    shown = bool(ways) and complete and not given
    means = {key: sum(way[key] for way in ways) / len(ways) if shown else None for key in bounds}
    return {**means, "ways": ways, "by_construction": given, "complete": complete}


def _kl(variant: Report, measured: float | None) -> Record | None:
    """KL from the baseline on unrelated text; 0 by construction for a memory that looks for keys and found none."""
    if variant["name"] == BASELINE or (looks_for_keys(variant) and measured == 0):
        return {"mean": 0.0, "by_construction": True}
    return None if measured is None else {"mean": measured, "by_construction": False}


def _per_right_answer(variant: Report, samples: Sequence[Record], seconds: float | None) -> Record:
    """Cost of a right answer to the questions about trained values: greedy answers, all training seeds.

    Seconds are known for all answers together, sampled ones included: their mean is divided by the share of right
    answers. Tokens include the prompt's if every answer records them. Bytes are those of one training seed's adapter,
    or of the facts that are looked up, over the right answers of one seed.
    """
    asked = [s for s in greedy(samples) if WAYS[s["split"]].group in RECALL]
    right, seeds = sum(bool(s["exact"]) for s in asked), len({s["seed"] for s in asked})
    prompts = prompts_counted(asked)
    tokens = sum(spent(s, prompts) for s in asked)
    size = variant.get("adapter_bytes") or variant.get("facts_bytes")
    return {
        "asked": len(asked),
        "right": right,
        "seconds_per_right": seconds / len(samples) * len(asked) / right if seconds is not None and right else None,
        "tokens_per_right": tokens / right if right else None,
        "bytes_per_right": size * seeds / right if size is not None and right else None,
        "prompt_tokens_counted": prompts,
        "token_efficiency": token_efficiency(asked) if asked else None,
    }


class Choice(NamedTuple):
    """What the data show for one need.

    Attributes:
        need: the need, in words.
        variants: the variants for which it is shown; None if no variant was asked what it takes to tell.
        unasked: ways that belong to the need and that no variant was asked.
    """

    need: str
    variants: list[str] | None
    unasked: list[str]


def choices(report: Report) -> list[Choice]:
    """The variants to use for each need, by the rules that the table's note states.

    The baseline knows no fact, and a dictionary is right by construction: both are left out.
    """
    cards = {row["variant"]: row for row in report.get("scorecard", ())}
    left_out = {v["name"] for v in report["variants"] if v["config"].get("kind") == "dictionary"} | {BASELINE}
    rows = [row for name, row in cards.items() if name not in left_out]

    def asked(*groups: str) -> list[Record]:
        return [row for row in rows if all(row[group] and row[group]["low"] is not None for group in groups)]

    def sure(row: Record, *groups: str) -> bool:
        return all(way["low"] >= SURE for group in groups for way in row[group]["ways"])

    def choice(need: str, groups: Sequence[str], told: Sequence[Record], held: Sequence[Record]) -> Choice:
        answered = {way["way"] for row in told for group in groups for way in row[group]["ways"]}
        unasked = [way.name for way in WAYS.values() if way.group in groups and way.name not in answered]
        return Choice(need, [row["variant"] for row in held] if told else None, unasked if told else [])

    found = []
    for need, group in (
        ("the facts must be recalled word for word as trained", "reliability"),
        ("asked in other words", "generality"),
        ("several facts in one question, or used for something", "portability"),
    ):
        told = asked(group)
        found.append(choice(need, [group], told, [row for row in told if sure(row, group)]))
    both = ("reliability", "locality")
    told = [row for row in asked(*both) if row["kl"]]
    still = [row for row in told if sure(row, *both) and max(row["kl"]["mean"], row.get("kl_with_keys") or 0) <= STILL]
    found.append(choice("nothing else may change", both, told, still))
    recalled = asked("reliability")
    trained = [row for row in recalled if row["train_seconds"] is not None]
    untrained = [row for row in recalled if row["train_seconds"] is None]
    for need, told, most in (
        ("facts change often", recalled, AT_ONCE),
        ("train in under a minute", trained, MINUTE),
        ("no training at all", untrained, 0.0),
    ):
        held = [row for row in told if sure(row, "reliability") and (row["train_seconds"] or 0.0) <= most]
        found.append(choice(need, ["reliability"], told, held))
    return found
