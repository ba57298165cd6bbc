"""The gate's comparison in words: a line for the terminal, a section for the report."""

from __future__ import annotations

from engram_bench.records import Record
from engram_bench.report.text import Section, Show, p_value, percent, points


def summary(gate: Record) -> str:
    """One line: how many cells came to each verdict, and the least effect the inconclusive ones could have shown."""
    if not gate["rows"]:
        why = "no cell of this run is in the baseline" if gate["fail"] else "the two runs drew other numbers of answers"
        return f"nothing to compare: {why}"
    told = []
    for name in ("regressed", "improved", "inconclusive", "unchanged"):
        rows = [row for row in gate["rows"] if row["verdict"] == name]
        if rows:
            low, high = (100 * pick(row["mde"] for row in rows) for pick in (min, max))
            mde = f" (MDE {low:.0f} to {high:.0f} points)" if name == "inconclusive" else ""
            told.append(f"{len(rows)} {name}{mde}")
    return f"{len(gate['rows'])} comparisons with the baseline: {', '.join(told)}"


def section(gate: Record, show: Show) -> Section:
    """The part of the report: the summary, warnings, and every row that is not plainly unchanged."""
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
        "Against the gate's baseline",
        intro=f"{summary(gate)}."
        + (f" A cell fails where it is worse, with p Holm below 0.05, in {fails}." if fails else ""),
        points=[show(warning, 200) for warning in gate["warnings"]],
        headers=(
            *("variant", "category", "split", "metric", "n"),
            *("before → after", "points", "p Holm", "verdict", "MDE"),
        ),
        rows=rows,
    )
