"""The sections that report.md and report.html share; every number comes from report.json."""

from __future__ import annotations

from collections import Counter

from engram_bench.data.ways import WAYS
from engram_bench.records import Report
from engram_bench.report import answers_text, costs, gate_text, ladder, published, scorecard_text, views
from engram_bench.report.reading import reading
from engram_bench.report.text import Section, Show, p_value, percent, points, rate
from engram_bench.report.views import SPLIT_TITLES


def results(report: Report, show: Show) -> list[Section]:
    """The first sections: the scorecard, when to use which, the gate, the primary contrast, exact answers."""
    found = [primary(report, show), *headline(report, show)]
    if "gate" in report:
        found.insert(0, gate_text.section(report["gate"], show))
    found = [scorecard_text.section(report, show), scorecard_text.when(report, show), *found]
    if not report["run"].get("complete", True):
        found.insert(0, Section("Interrupted", intro="This run did not finish; the figures below are partial."))
    return _with_content(found)


def details(report: Report, show: Show) -> list[Section]:
    """All other sections: further measurements, costs, thresholds, and how to read them."""
    found = (answers_text.consistency, answers_text.forms, collateral, passages, mentions, routing, answers_text.routed)
    measured = (
        ladder.section,
        trainings,
        *found,
        contrasts,
        non_inferiority,
        *costs.SECTIONS,
        thresholds,
        published.section,
    )
    meaning = Section("What the numbers show, and what they do not", points=reading(report, show))
    sections = [part(report, show) for part in measured]
    return _with_content([*sections, meaning, costs.what_was_run(report, show)])


def _with_content(parts: list[Section]) -> list[Section]:
    """Drop the sections without content."""
    return [part for part in parts if part.rows or part.points or part.intro]


def primary(report: Report, show: Show) -> Section:
    """The one contrast that is fixed in the code."""
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
        headers=("contrast", "on", "n", "points", "p", "p Holm", "MDE", "verdict", "less than 2 points worse"),
        rows=rows,
        note="Fixed in the code, whatever a run shows. Holm's adjustment covers it and all other contrasts, so "
        "the whole report has a family-wise error rate of 5%.",
    )


def headline(report: Report, show: Show) -> list[Section]:
    """One table per way that was asked: exact rate and interval by category and variant."""
    found: list[Section] = []
    for split, title in SPLIT_TITLES.items():
        cells = views.cells(report, split)
        names = [name for name in views.names(report) if any(v == name for _, v in cells)]
        mde = views.mde(report, split, "exact")
        rows = []
        for category in views.categories(report, cells):
            row = {name: cells.get((category, name)) for name in names}
            n = max(cell["n"] for cell in row.values() if cell)
            rows.append((show(category), str(n), mde.get(category, ""), *(_exact(split, *of) for of in row.items())))
        if not rows:
            continue
        note = (
            "Exact: the whole answer is right, greedy decoding; in brackets the 95% Wilson interval. MDE: the least "
            "true difference from the baseline, in points, that n items detect with 80% power (see Contrasts)."
        )
        headers = ("category", "n", "MDE", *map(show, names))
        intro = f"Right is {WAYS[split].right}."
        found.append(Section(title, intro=intro, headers=headers, rows=rows, note="" if found else note))
    return found


def _exact(split: str, variant: str, cell: Report | None) -> str:
    if cell is None:
        return ""
    return scorecard_text.BY_CONSTRUCTION if views.by_construction(variant, split) else rate(cell["exact"])


def collateral(report: Report, show: Show) -> Section:
    """How far an adapter changes unrelated prompts."""
    still, given = views.still(report), scorecard_text.BY_CONSTRUCTION
    rows = [
        (
            show(c["variant"]),
            str(c["prompts"]),
            str(c["tokens"]),
            *((f"0 {given}", f"0 {given}", f"100% {given}") if c["variant"] in still else _moved(c)),
        )
        for c in report["collateral"]
    ]
    return Section(
        "Collateral: change on unrelated prompts and on the baseline's answers to them",
        headers=("variant", "prompts", "tokens", "KL mean", "KL max", "top-1 unchanged"),
        rows=rows,
        note="KL(baseline ‖ variant) in nats per token. By construction: a memory with keys is not consulted on text "
        "without a key, so its row is no finding; the test only checks that it is left out.",
    )


def _moved(measured: Report) -> tuple[str, str, str]:
    """Mean and maximum divergence, and the share of tokens whose most probable next token stays."""
    return f"{measured['kl_mean']:.2g}", f"{measured['kl_max']:.2g}", percent(measured["top1_unchanged"])


def passages(report: Report, show: Show) -> Section:
    """How far an adapter changes running text that holds keys and asks nothing."""
    rows = [
        (
            show(p["kind"]),
            show(p["variant"]),
            *(str(p[count]) for count in ("prompts", "words", "keys")),
            "looks for no key" if p["firings"] is None else f"{p['firings_per_1000_words']:.1f} ({p['firings']})",
            *_moved(p),
        )
        for p in sorted(report.get("passages", ()), key=lambda p: p["kind"], reverse=True)
    ]
    return Section(
        "Collateral in running text: keys occur, nothing is asked",
        headers=(
            *("text", "variant", "passages", "words", "keys", "false firings per 1,000 words"),
            *("KL mean", "KL max", "top-1 unchanged"),
        ),
        rows=rows,
        note="False firings: passages in which a memory finds a key and so acts, although nothing is asked; their "
        "number in brackets. A memory acts at most once in a passage, so the rate follows from how many passages hold "
        "a key and says nothing of other texts. KL(baseline ‖ variant) in nats per token of the baseline's "
        "continuation.",
    )


def mentions(report: Report, show: Show) -> Section:
    """How often an adapter recites a stored value that the prompt does not ask for."""
    rows = [
        (show(m["variant"]), str(m["prompts"]), rate(m["told"]), rate(m["unchanged"]))
        for m in report.get("mentions", ())
    ]
    return Section(
        "Recited values: prompts that name a trained input but ask for something else",
        headers=("variant", "prompts", "recites the stored value", "answer unchanged"),
        rows=rows,
        note="Recites: the answer starts with the stored value, and the baseline's answer does not. Unchanged: the "
        "answer equals the baseline's, character for character. In brackets the 95% Wilson interval.",
    )


def routing(report: Report, show: Show) -> Section:
    """How well routers recognize prompts that ask for a stored value."""
    rows = [
        (show(r["set"]), show(r["router"]), str(r["prompts"]), *(_routed(r, name) for name in ("precision", "recall")))
        for r in (report["routing"] or {}).get("routers", ())
    ]
    return Section(
        "Routing: recognizing prompts that ask for a trained item",
        headers=("set", "router", "prompts", "precision", "recall"),
        rows=rows,
        note="keys (used by engram-keyed): the text holds a trained key. learned (used by engram-routed): a linear "
        "classifier of the untouched model's hidden state at the end of the prompt. rules: those of engram-poc, a key "
        "prefix or a plain question. In own words: requests that are all worded differently, and the labelled prompts "
        "that ask for nothing. Hard prompts mislead: stored keys in passing, complete code that begins like a stored "
        "line, keys of other namespaces, unusual requests. The keys router is tested on requests for trained items "
        "only, so its number of prompts depends on the profile. In brackets the 95% interval.",
    )


def _routed(router: Report, name: str) -> str:
    if f"{name}_low" not in router:  # an older report
        return percent(router[name])
    return f"{percent(router[name])} [{100 * router[f'{name}_low']:.0f}–{100 * router[f'{name}_high']:.0f}]"


def contrasts(report: Report, show: Show) -> Section:
    """Every variant compared with the baseline, paired on items."""
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
        note="Paired on items. Points: the difference and its 95% interval, Newcombe's. Exact: exact McNemar test. "
        "Consistency (share of an item's answers that are right): sign-flip permutation test. p Holm is adjusted over "
        "the rows in which enough items differ for a verdict (Tarone 1990). MDE: the least true difference, in points, "
        "that n items detect with 80% power at Holm's first step.",
    )


def non_inferiority(report: Report, show: Show) -> Section:
    """Whether the variants with thresholds are no worse than retrieval."""
    found = report.get("non_inferiority", ())
    rows = [
        (
            show(c["category"]),
            c["split"],
            show(c["b"]),
            str(c["n"]),
            f"{points(c['difference'])} [{points(c['low'])}, {points(c['high'])}]",
            c["no_worse"],
        )
        for c in found
    ]
    counts = Counter(c["no_worse"] for c in found)
    margin = f"{100 * found[0]['margin']:.0f} points" if found else ""
    return Section(
        "No worse than retrieval",
        headers=("category", "split", "variant", "n", "points", "no worse"),
        rows=rows,
        folded=f"{len(rows)} comparisons, no worse: {', '.join(f'{n} {name}' for name, n in counts.most_common())}",
        note=f"Exact answers, paired on items; the difference from retrieval and its 95% interval. Shown: the interval "
        f"excludes a loss of {margin} or more. Not shown: it has nothing else. Inconclusive: it has both. "
        "Not adjusted for the number of comparisons, and not asserted.",
    )


def trainings(report: Report, show: Show) -> Section:
    """What the rich training brings a variant, against the bare one."""
    rows = [
        (
            show(c["b"]),
            c["split"],
            str(c["n"]),
            percent(c["bare"]),
            percent(c["rich"]),
            f"{points(c['difference'])} [{points(c['low'])}, {points(c['high'])}]",
            p_value(c["p_holm"]),
            c["verdict"],
        )
        for c in report.get("trainings", ())
    ]
    return Section(
        "What the training questions bring",
        headers=("variant", "way", "n", "bare", "rich", "points", "p (Holm)", "verdict"),
        rows=rows,
        note="Right answers, all categories together. Bare: three phrasings of each item. Rich: also further wordings, "
        "two-key questions, and prompts whose answers must stay.",
    )


def thresholds(report: Report, show: Show) -> Section:
    """Each requirement with its measured value; missed ones are also listed above the folded table."""
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
