"""The parts of a report, the same for report.md and report.html: every number is from report.json."""

from __future__ import annotations

from collections import Counter

from engram_bench.records import Report
from engram_bench.report import costs, gate_text, published, views
from engram_bench.report.reading import reading
from engram_bench.report.text import Section, Show, p_value, percent, points, rate
from engram_bench.report.views import SPLIT_TITLES


def results(report: Report, show: Show) -> list[Section]:
    """What comes first: the gate, the contrast named before any run, exact answers."""
    found = [primary(report, show), *headline(report, show)]
    if "gate" in report:
        found.insert(0, gate_text.section(report["gate"], show))
    if not report["run"].get("complete", True):
        found.insert(0, Section("Broken off", intro="This run did not finish; what follows is partial."))
    return _there(found)


def details(report: Report, show: Show) -> list[Section]:
    """What is measured besides, and how."""
    answers = (consistency, collateral, mentions, routing, contrasts)
    measured = (*answers, costs.training, costs.speed, costs.lookup, thresholds, published.section)
    told = Section("What the numbers show, and what they do not", points=reading(report, show))
    found = [part(report, show) for part in measured]
    return _there([*found, told, costs.what_was_run(report, show)])


def _there(parts: list[Section]) -> list[Section]:
    """Those that have something to say."""
    return [part for part in parts if part.rows or part.points or part.intro]


def primary(report: Report, show: Show) -> Section:
    """The one contrast named before any run."""
    c = report.get("primary")
    rows = []
    if c:
        difference = f"{points(c['difference'])} [{points(c['low'])}, {points(c['high'])}]"
        rows.append(
            (
                f"{show(c['b'])} against {show(c['a'])}",
                f"{c['split']}, {show(c['category'])}, {c['metric']}",
                str(c["n"]),
                difference,
                p_value(c["p"]),
                p_value(c["p_holm"]),
                f"{100 * c['mde']:.1f}",
                c["verdict"],
                "shown" if c["no_worse"] else "not shown",
            )
        )
    return Section(
        "Primary contrast",
        headers=("contrast", "on", "n", "points", "p", "p Holm", "MDE", "verdict", "no worse by 2 points"),
        rows=rows,
        note="Named before any run; adjusted with all other contrasts, so the report as a whole keeps to 5%.",
    )


def headline(report: Report, show: Show) -> list[Section]:
    """One table a split: category by variant, exact with its interval."""
    found: list[Section] = []
    for split, title in SPLIT_TITLES.items():
        cells = views.cells(report, split)
        names = [name for name in views.names(report) if any(v == name for _, v in cells)]
        mde = views.mde(report, split, "exact")
        rows = []
        for category in views.categories(report, cells):
            row = [cells.get((category, name)) for name in names]
            n = max(cell["n"] for cell in row if cell)
            shown = (rate(cell["exact"]) if cell else "" for cell in row)
            rows.append((show(category), str(n), mde.get(category, ""), *shown))
        note = (
            "Exact match of the whole answer, greedy decoding; in brackets the 95% Wilson interval. MDE: the least "
            "true difference from the baseline, in points, that n items find with 80% power (see Contrasts)."
        )
        headers = ("category", "n", "MDE", *map(show, names))
        found.append(Section(title, headers=headers, rows=rows, note="" if any(s.rows for s in found) else note))
    return found


def consistency(report: Report, show: Show) -> Section:
    """How alike the answers to one prompt are: drawn, and greedy once more."""
    cells = {at: cell for at, cell in views.cells(report, "seen").items() if cell["consistency"]}
    names = [name for name in views.names(report) if any(v == name for _, v in cells)]
    mde = views.mde(report, "seen", "consistency")
    rows = []
    for category in views.categories(report, cells):
        found = [cells.get((category, name)) for name in names]
        row = [show(category), str(max(cell["consistency"]["n"] for cell in found if cell)), mde.get(category, "")]
        for cell in found:
            drawn, again = (cell["consistency"], cell.get("greedy_repeats")) if cell else (None, None)
            shown = f"{percent(drawn['mean'])} [{100 * drawn['low']:.0f}–{100 * drawn['high']:.0f}]" if drawn else ""
            row.append(shown + (f", greedy {percent(again['same'])}" if again else ""))
        rows.append(row)
    return Section(
        "Consistency",
        headers=("category", "n", "MDE", *map(show, names)),
        rows=rows,
        note=f"Share of the commonest of {report['run']['samples']} answers drawn at temperature 0.8, bootstrap "
        "interval over items; greedy: items answered in the same words when asked again in another batch "
        f"({show(report['backend']['dtype'])}).",
    )


def collateral(report: Report, show: Show) -> Section:
    """What else an adapter changes."""
    rows = [
        (
            show(c["variant"]),
            str(c["prompts"]),
            str(c["tokens"]),
            f"{c['kl_mean']:.2g}",
            f"{c['kl_max']:.2g}",
            percent(c["top1_unchanged"]),
        )
        for c in report["collateral"]
    ]
    return Section(
        "Collateral: unrelated prompts and the baseline's own answers to them",
        headers=("variant", "prompts", "tokens", "KL mean", "KL max", "top-1 unchanged"),
        rows=rows,
        note="KL(baseline ‖ variant) in nats per token.",
    )


def mentions(report: Report, show: Show) -> Section:
    """What an adapter says where something stored is only named."""
    rows = [
        (show(m["variant"]), str(m["prompts"]), rate(m["told"]), rate(m["unchanged"]))
        for m in report.get("mentions", ())
    ]
    return Section(
        "Mentions: prompts that name a trained input and ask for something else",
        headers=("variant", "prompts", "tells the stored value", "answer unchanged"),
        rows=rows,
        note="Stored value: the answer starts with it, and the baseline's does not. Unchanged: the baseline's answer, "
        "to the letter. In brackets the 95% Wilson interval.",
    )


def routing(report: Report, show: Show) -> Section:
    """How well routers tell prompts that ask for something stored."""
    rows = [
        (show(r["set"]), show(r["router"]), str(r["prompts"]), *(_routed(r, name) for name in ("precision", "recall")))
        for r in (report["routing"] or {}).get("routers", ())
    ]
    return Section(
        "Routing: prompts that ask for a trained item among such as only look like it",
        headers=("set", "router", "prompts", "precision", "recall"),
        rows=rows,
        note="keys: a trained n-gram stands in the text, which is what engram goes by; rules: a key prefix, or the "
        "form of a question, which is what engram-routed goes by as well. In own words: requests no two of which are "
        "worded alike, beside the labelled ones that ask for nothing. Hard prompts mislead: stored keys in passing, "
        "whole code that begins like a stored line, keys of other namespaces, requests put in unusual ways. keys is "
        "asked for trained items alone, so its prompts depend on the profile. In brackets the 95% interval.",
    )


def _routed(router: Report, name: str) -> str:
    if f"{name}_low" not in router:  # an older report
        return percent(router[name])
    return f"{percent(router[name])} [{100 * router[f'{name}_low']:.0f}–{100 * router[f'{name}_high']:.0f}]"


def contrasts(report: Report, show: Show) -> Section:
    """Every variant against the baseline, paired."""
    rows = [
        (
            show(c["category"]),
            c["split"],
            show(c["b"]),
            c["metric"],
            str(c["n"]),
            f"{points(c['difference'])} [{points(c['low'])}, {points(c['high'])}]",
            p_value(c["p"]),
            p_value(c["p_holm"]),
            f"{100 * c['mde']:.0f}",
            c["verdict"],
        )
        for c in report["contrasts"]
    ]
    verdicts = Counter(c["verdict"] for c in report["contrasts"])
    worse = [
        f"Worse than the baseline: {show(c['b'])} on {show(c['category'])}, {c['split']}, {c['metric']}, by "
        f"{points(c['difference'])} points."
        for c in report["contrasts"]
        if c["verdict"] == "regressed"
    ]
    return Section(
        "Contrasts with the baseline",
        points=worse,
        headers=("category", "split", "variant", "metric", "n", "points", "p", "p Holm", "MDE", "verdict"),
        rows=rows,
        folded=f"{len(rows)} contrasts: {', '.join(f'{n} {name}' for name, n in verdicts.most_common())}",
        note="Paired on items; points: the difference and its 95% interval. Exact: exact McNemar test, Newcombe "
        "interval; consistency (share of the commonest of the answers drawn at temperature 0.8): sign-flip permutation "
        "test, bootstrap interval. p Holm is adjusted over the rows in which enough items differ for a verdict (Tarone "
        "1990). MDE: the least true difference, in points, this n finds with 80% power at Holm's first step.",
    )


def thresholds(report: Report, show: Show) -> Section:
    """Each requirement with what was measured; those that were missed are told before the table is unfolded."""
    rows = [
        (
            show(t["id"]),
            show(t["requirement"], 120),
            f"{t['measured']:.4g}",
            f"{t['low']:.4g}",
            "✓ met" if t["passed"] else "✗ missed",
        )
        for t in report["thresholds"]
    ]
    missed = [t for t in report["thresholds"] if not t["passed"]]
    return Section(
        "Thresholds",
        points=[f"Missed: {show(t['id'])}: {show(t['requirement'], 120)}; {t['measured']:.4g}." for t in missed],
        headers=("id", "requirement", "measured", "lower bound", ""),
        rows=rows,
        folded=f"{len(rows)} thresholds, {len(missed)} missed",
    )
