"""Renders the gate's comparison: one line for the terminal, one section for the report."""

from __future__ import annotations

from engram_bench.records import Record
from engram_bench.report.text import Section, Show, p_value, percent, points


def summary(gate: Record) -> str:
    """One line: the number of comparisons per verdict, with the range of MDEs of the inconclusive ones."""
    if not gate["rows"]:
        why = "no cell of this run is in the baseline" if gate["fail"] else "the runs sampled other numbers of answers"
        return f"nothing to compare: {why}"
    counts = []
    for name in ("regressed", "improved", "inconclusive", "unchanged"):
        rows = [row for row in gate["rows"] if row["verdict"] == name]
        if rows:
            low, high = (100 * pick(row["mde"] for row in rows) for pick in (min, max))
            mde = f" (MDE {low:.0f} to {high:.0f} points)" if name == "inconclusive" else ""
            counts.append(f"{len(rows)} {name}{mde}")
    return f"{len(gate['rows'])} comparisons with the baseline: {', '.join(counts)}"


def section(gate: Record, show: Show) -> Section:
    """The section of the report: summary, warnings, and every row whose verdict is not "unchanged"."""
    rows = [
        (
            show(row["variant"]),
            show(row["category"]),
            row["split"],
            row["metric"],
            str(row["n"]),
            f"{percent(row['before'])} → {percent(row['after'])}",
            f"{points(row['difference'])} [{points(row['low'])}, {points(row['high'])}]",
            p_value(row["p_holm"]),
            row["verdict"],
            f"{100 * row['mde']:.0f}",
        )
        for row in gate["rows"]
        if row["verdict"] != "unchanged"
    ]
    fails = ", ".join(f"{metric} by more than {100 * margin:g} points" for metric, margin in gate["fail"].items())
    return Section(
        "Comparison with the gate's baseline",
        intro=f"{summary(gate)}."
        + (f" A cell fails if it is significantly worse (p Holm below 0.05) in {fails}." if fails else ""),
        points=[show(warning, 200) for warning in gate["warnings"]],
        headers=(
            *("variant", "category", "split", "metric", "n"),
            *("before → after", "points", "p Holm", "verdict", "MDE"),
        ),
        rows=rows,
    )
