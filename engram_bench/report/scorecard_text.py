"""Renders the scorecard and the table of needs, for the report's pages and for the terminal."""

from __future__ import annotations

from tabulate import tabulate

from engram_bench.data.ways import GROUPS, WAYS
from engram_bench.records import BASELINE, Record, Report
from engram_bench.report.costs import size
from engram_bench.report.scorecard import AT_ONCE, MINUTE, STILL, SURE, choices
from engram_bench.report.text import Section, Show, inert, percent, rate

BY_CONSTRUCTION = "by construction"
COSTS = tuple(f"{unit} per right answer" for unit in ("s", "tokens", "bytes"))
LONGEST_NAME = 18  # characters of a variant's name on a terminal


def section(report: Report, show: Show) -> Section:
    """The scorecard: variants by group of ways, change elsewhere, and costs."""
    rows = report.get("scorecard", ())
    table = [
        (
            show(row["variant"]),
            *(score(row[group]) for group in GROUPS),
            _kl(row),
            _kl_with_keys(row),
            _recited(row),
            *_training(row),
            _per_right(row, "seconds_per_right"),
            _per_right(row, "tokens_per_right"),
            _bytes(row),
            percent(efficiency["mean"]) if (efficiency := row.get("token_efficiency")) else "not measured",
        )
        for row in rows
    ]
    prompts = any(row["prompt_tokens_counted"] for row in rows)
    return Section(
        "Scorecard",
        intro=f"Share of right answers. {asked(report)}." if rows else "",
        headers=(
            *("variant", *GROUPS, "KL on unrelated text", "KL where keys occur", "recited"),
            *("training", "adapter", *COSTS, "token efficiency"),
        ),
        rows=table,
        note="A group's figure is the mean of the rates of its ways, each pooled over categories; in brackets a 95% "
        "interval: the means of the ways' Wilson bounds, which hold however the ways are correlated. KL: mean over "
        "tokens, in nats; where keys occur: in prose or code that asks nothing, the larger of the two. Recited: a "
        "stored value is the answer to a prompt that only names its key. Costs per right answer cover the ways of the "
        "first three groups; tokens are "
        f"{'those of prompt and answer' if prompts else 'generated ones, without the prompt'}; bytes are the adapter's "
        "or, where facts are looked up, those of all facts as text. Token efficiency: tokens of the right answers over "
        "all of these tokens. By construction: the definition decides it, not the data. The "
        "baseline is compared with itself, and a memory with keys is not consulted on text without a key.",
    )


def asked(report: Report) -> str:
    """The ways of each group and their numbers of items: "Reliability: seen (n = 20); generality: not asked"."""
    parts = []
    for group in GROUPS:
        n = items(report, group)
        parts.append(f"{group}: {', '.join(f'{way} (n = {count})' for way, count in n.items()) or 'not asked'}")
    return "; ".join(parts).capitalize()


def items(report: Report, group: str) -> dict[str, int]:
    """The ways of a group that were asked, and how many items: the most of any variant."""
    found = [way for row in report.get("scorecard", ()) if row[group] for way in row[group]["ways"]]
    n = {name: [way["n"] for way in found if way["way"] == name] for name in WAYS}
    return {name: max(counts) for name, counts in n.items() if counts}


def when(report: Report, show: Show) -> Section:
    """When to use which: the variants for which the data show what a need takes."""
    rows = []
    for need, variants, unasked in choices(report) if report.get("scorecard") else ():
        entry = "not asked" if variants is None else ", ".join(map(show, variants)) or "not shown"
        rows.append((need, entry + (f" ({', '.join(unasked)}: not asked)" if unasked else "")))
    return Section(
        "When to use which",
        headers=("need", "shown in this run for"),
        rows=rows,
        note=f"Shown: in each way of the group, the lower bound of the 95% interval is {100 * SURE:.0f}% or more. The "
        "first three needs take reliability, generality and portability in turn. Nothing else changes: reliability and "
        f"locality, and a mean KL of at most {STILL:g} nats per token on unrelated text and in text with keys. Facts "
        "change often: "
        f"reliability, and at most {AT_ONCE:.0f} s of training, because each change trains anew; facts that are "
        f"written one by one are not timed in a run. In under a minute: reliability, and training in at most "
        f"{MINUTE:.0f} s on the machine that trained. Not shown: asked, but no variant is there. Not asked: this run "
        "has no data on it. The baseline, and a dictionary, which is right by construction wherever the key is exact, "
        "are left out.",
    )


def score(found: Record | None) -> str:
    """A group's cell: "97.5% [93–99]", or in words where there is no rate."""
    if found is None:
        return "not asked"
    if found["rate"] is not None:
        return rate(found)
    if found["by_construction"]:
        measured = [f"{way['way']} {rate(way)}" for way in found["ways"]]
        return ", else ".join([*measured, BY_CONSTRUCTION])
    return "asked in part"


def brief(row: Record) -> tuple[str, ...]:
    """A row in short: groups, KL on unrelated text, seconds of training, seconds per right answer."""
    return *(score(row[group]) for group in GROUPS), _kl(row), _training(row)[0], _per_right(row, "seconds_per_right")


def _kl(row: Record) -> str:
    if row["kl"] is None:
        return "not measured"
    return f"0 {BY_CONSTRUCTION}" if row["kl"]["by_construction"] else f"{row['kl']['mean']:.2g}"


def _kl_with_keys(row: Record) -> str:
    if row["variant"] == BASELINE:
        return f"0 {BY_CONSTRUCTION}"
    return "not measured" if row.get("kl_with_keys") is None else f"{row['kl_with_keys']:.2g}"


def _recited(row: Record) -> str:
    if row["variant"] == BASELINE:
        return f"0 {BY_CONSTRUCTION}"
    return rate(row["recited"]) if row["recited"] else "not measured"


def _training(row: Record) -> tuple[str, str]:
    """Training time and adapter size."""
    if row["train_seconds"] is None:
        return "none", "none"
    return f"{row['train_seconds']:.0f} s", "unknown" if row["adapter_bytes"] is None else size(row["adapter_bytes"])


def _per_right(row: Record, key: str) -> str:
    if row[key] is None:
        return "no right answer" if row["asked"] and not row["right"] else "not measured"
    return f"{row[key]:.3g}" if row[key] < 1000 else f"{row[key]:,.0f}"


def _bytes(row: Record) -> str:
    """Stored bytes per right answer."""
    if row["variant"] == BASELINE:
        return "none"
    found = row.get("bytes_per_right")
    if found is not None:
        return size(round(found))
    return "no right answer" if row["asked"] and not row["right"] else "not counted"


def terminal(report: Report) -> list[str]:
    """Lines for a terminal of 100 columns: a table of answers, one of costs, and what their signs mean."""
    rows = report.get("scorecard", ())
    names = [inert(row["variant"]) for row in rows]
    names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names]
    groups = [group for group in GROUPS if any(row[group] for row in rows)]
    answers = [
        (name, *(_short_score(row[group]) for group in groups), _short_kl(row), _short_recited(row))
        for name, row in zip(names, rows, strict=True)
    ]
    costs = [
        (name, *_training(row), *(_per_right(row, f"{unit}_per_right") for unit in ("seconds", "tokens")), _bytes(row))
        for name, row in zip(names, rows, strict=True)
    ]
    lines = [
        *_table(["variant", *groups, "KL", "recited"], answers),
        "right answers in % with 95% interval; *: true by construction, or asked in part; -: not asked",
        "",
        *_table(["variant", "training", "adapter", *(cost.removesuffix(" answer") for cost in COSTS)], costs),
    ]
    return lines if rows else []


def _table(headers: list[str], rows: list[tuple[str, ...]]) -> list[str]:
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True).splitlines()


def _short_score(found: Record | None) -> str:
    if found is None:
        return "-"
    if found["rate"] is None:
        return "*"
    return f"{100 * found['rate']:.0f} [{100 * found['low']:.0f}-{100 * found['high']:.0f}]"


def _short_kl(row: Record) -> str:
    if row["kl"] is None:
        return "-"
    return "0*" if row["kl"]["by_construction"] else f"{row['kl']['mean']:.2g}"


def _short_recited(row: Record) -> str:
    if row["variant"] == BASELINE:
        return "0*"
    return percent(row["recited"]["rate"]) if row["recited"] else "-"
