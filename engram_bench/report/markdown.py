"""report.json as Markdown: a verdict in words, the headline table, contrasts, training, examples, published figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engram_bench.report import gate_text, views
from engram_bench.report.plots import ALT
from engram_bench.report.reading import reading, verdict
from engram_bench.report.text import p_value, percent, points, rate, safe, table
from engram_bench.report.views import SPLIT_TITLES

Record = Mapping[str, Any]
EXAMPLES_PER_CATEGORY = 2

# What others published under their own rules, and the cell of this report that comes nearest: variant, category.
PUBLISHED = (
    (
        "engram-poc, LoRA on MLX, SmolLM-135M",
        "8.65% → 11.54% (9 → 12 of 104; prefix rule; 80 of the 104 were in train)",
        ("lora", "all core"),
    ),
    ("engram-poc, LoRA with Unsloth, RTX 3060", "8.59% → 6.25%; a later run 14.06% (18 of 128)", ("lora", "all core")),
    ("engram-poc, 500-slot hash memory, acronyms", "12% → 75% (n = 8)", ("engram-unigram", "acronym")),
    ("engram-poc, 500-slot hash memory, element names", "0% → 67% (n = 3)", ("engram-unigram", "element_name")),
    ("engram-poc, 500-slot hash memory, capitals", "22% → 0%", ("engram-unigram", "capital")),
    ("engram-poc, 500-slot hash memory, random pairs", "0% → 0%", ("engram-unigram", "synthetic")),
    ("engraft-ngram, 51B base, 100 invented facts", "0.5% → 84.1%, KL on other text 0.0131", ("engram", "synthetic")),
)


def render(report: Record, samples: Sequence[Record], plots: Collection[str] = ()) -> str:
    """The whole report.md. `samples` give the before-and-after examples, every number is from `report`.

    Args:
        report: report.json.
        samples: lines of samples.jsonl.
        plots: names of those that were drawn.
    """
    parts = [
        "# engram-bench report",
        " ".join(verdict(report, safe)),
        gate_text.section(report["gate"]) if "gate" in report else "",
        primary(report),
        *headline(report),
        *(f"![{title}](plots/{name}.png)" for name, title in ALT.items() if name in plots),
        consistency(report),
        collateral(report),
        routing(report),
        contrasts(report),
        training(report),
        speed(report),
        before_and_after(report, samples),
        thresholds(report),
        published(report),
        "## What the numbers show, and what they do not\n\n" + "\n".join(f"- {s}" for s in reading(report, safe)),
        what_was_run(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(report: Record) -> list[str]:
    """One table a split: category by variant, exact with its interval."""
    parts = []
    for split, title in SPLIT_TITLES.items():
        cells = views.cells(report, split)
        if not cells:
            continue
        names = [name for name in views.names(report) if any(v == name for _, v in cells)]
        mde = views.mde(report, split, "exact")
        rows = []
        for category in views.categories(report, cells):
            found = [cells.get((category, name)) for name in names]
            n = max(cell["n"] for cell in found if cell)
            shown = f"**{safe(category)}**" if category.startswith("all ") else safe(category)
            rows.append([shown, n, mde.get(category, ""), *(rate(cell["exact"]) if cell else "" for cell in found)])
        parts.append(f"## {title}\n\n{table(rows, ['category', 'n', 'MDE', *map(safe, names)])}")
    if parts:
        parts[0] += (
            "\n\nExact match of the whole answer, greedy decoding; in brackets the 95% Wilson interval. MDE: the least "
            "true difference from the baseline, in points, that n items find with 80% power (see Contrasts)."
        )
    return parts


def consistency(report: Record) -> str:
    """How alike the answers to one prompt are: drawn, and greedy once more."""
    cells = {at: cell for at, cell in views.cells(report, "seen").items() if cell["consistency"]}
    if not cells:
        return ""
    names = [name for name in views.names(report) if any(v == name for _, v in cells)]
    mde = views.mde(report, "seen", "consistency")
    rows = []
    for category in views.categories(report, cells):
        found = [cells.get((category, name)) for name in names]
        row = [safe(category), max(cell["consistency"]["n"] for cell in found if cell), mde.get(category, "")]
        for cell in found:
            drawn, again = (cell["consistency"], cell.get("greedy_repeats")) if cell else (None, None)
            shown = f"{percent(drawn['mean'])} [{100 * drawn['low']:.0f}–{100 * drawn['high']:.0f}]" if drawn else ""
            row.append(shown + (f", greedy {percent(again['same'])}" if again else ""))
        rows.append(row)
    return (
        "## Consistency\n\n"
        + table(rows, ["category", "n", "MDE", *map(safe, names)])
        + f"\n\nShare of the commonest of {report['run']['samples']} answers drawn at temperature 0.8, bootstrap "
        "interval over items; greedy: items answered in the same words when asked again in another batch "
        f"({safe(report['backend']['dtype'])})."
    )


def what_was_run(report: Record) -> str:
    """Model, device, data, command."""
    run, backend, model, data = (report[key] for key in ("run", "backend", "model", "dataset"))
    evaluation = sum(run["evaluation_s"].values())
    rows = [
        ("started", f"{run['started']}, {run['duration_s']:.0f} s in all, {evaluation:.0f} s of it answering"),
        ("command", safe(" ".join(run["argv"]), 300)),
        ("profile", f"{run['profile']}; seeds {', '.join(map(str, run['seeds']))}; {run['samples']} samples at 0.8"),
        ("commit", run["git_commit"] or "not a git checkout"),
        ("broken off", "no" if run.get("complete", True) else "yes: what follows is partial"),
        ("model", f"{safe(model['id'])}, {model['parameters']:,} parameters, {safe(model['source'])}"),
        ("weights", f"SHA-256 {model['sha256'][:16]}"),
        ("backend", f"{backend['name']} on {backend['device']}, {backend['dtype']} ({safe(backend['dtype_reason'])})"),
        ("batch", f"{backend['batch_size']} rows, at most {backend['max_new_tokens']} new tokens"),
        ("speed", ", ".join(f"{safe(name)} {rate:.0f}" for name, rate in run["tokens_s"].items()) + " new tokens/s"),
        ("memory", f"{run['peak_memory_mb']:,} MiB at most"),
        ("data", f"{data['items']} items in {len(data['categories'])} categories, SHA-256 {data['sha256'][:16]}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in backend["versions"].items())),
    ]
    return "## What was run\n\n" + table(rows, ["", ""])


def collateral(report: Record) -> str:
    """What else an adapter changes."""
    if not report["collateral"]:
        return ""
    rows = [
        (
            safe(c["variant"]),
            c["prompts"],
            c["tokens"],
            f"{c['kl_mean']:.2g}",
            f"{c['kl_max']:.2g}",
            percent(c["top1_unchanged"]),
        )
        for c in report["collateral"]
    ]
    headers = ["variant", "prompts", "tokens", "KL mean", "KL max", "top-1 unchanged"]
    return (
        "## Collateral: unrelated prompts and the baseline's own answers to them\n\n"
        + table(rows, headers)
        + "\n\nKL(baseline ‖ variant) in nats per token."
    )


def routing(report: Record) -> str:
    """How well routers tell prompts that ask for something stored."""
    if not report["routing"]:
        return ""
    rows = [
        (safe(r["router"]), r["prompts"], percent(r["precision"]), percent(r["recall"]))
        for r in report["routing"]["routers"]
    ]
    return (
        "## Routing: prompts that ask for a trained item among such as only look like it\n\n"
        + table(rows, ["router", "prompts", "precision", "recall"])
        + "\n\nkeys: a trained n-gram stands in the text, which is what `engram` goes by; rules: a key prefix, or the "
        "form of a question, which is what `engram-routed` goes by as well."
    )


def primary(report: Record) -> str:
    """The one contrast named before any run."""
    c = report.get("primary")
    if not c:
        return ""
    no_worse = (
        "" if c["verdict"] == "improved" else f" No worse by 2 points: {'shown' if c['no_worse'] else 'not shown'}."
    )
    return (
        "## Primary contrast\n\n"
        f"{safe(c['b'])} against {safe(c['a'])}, {safe(c['category'])}, {c['split']}, {c['metric']}: "
        f"{points(c['difference'])} points [{points(c['low'])}, {points(c['high'])}], n = {c['n']}, "
        f"p {p_value(c['p'])}, p Holm {p_value(c['p_holm'])}, MDE {100 * c['mde']:.1f} points: "
        f"**{c['verdict']}**.{no_worse}\n\n"
        "Named before any run; adjusted with all other contrasts, so the report as a whole keeps to 5%."
    )


def contrasts(report: Record) -> str:
    """Every variant against the baseline, paired."""
    rows = [
        (
            safe(c["category"]),
            c["split"],
            safe(c["b"]),
            c["metric"],
            c["n"],
            f"{points(c['difference'])} [{points(c['low'])}, {points(c['high'])}]",
            p_value(c["p"]),
            p_value(c["p_holm"]),
            f"{100 * c['mde']:.0f}",
            c["verdict"],
        )
        for c in report["contrasts"]
    ]
    if not rows:
        return ""
    headers = ["category", "split", "variant", "metric", "n", "difference in points", "p", "p Holm", "MDE", "verdict"]
    return (
        "## Contrasts with the baseline\n\n"
        "Paired on items. Exact: exact McNemar test, Newcombe interval; consistency (share of the commonest of the "
        "answers drawn at temperature 0.8): sign-flip permutation test, bootstrap interval. p Holm is adjusted over "
        "all rows. MDE: the least true difference, in points, this n finds with 80% power at the "
        "level of Holm's first step.\n\n"
        f"<details><summary>{len(rows)} contrasts</summary>\n\n{table(rows, headers)}\n\n</details>"
    )


def training(report: Record) -> str:
    """How each adapter came to be."""
    rows = []
    for v in report["variants"]:
        t = v["train"]
        if t is None:
            continue
        elsewhere = t.get("backend", report["backend"]["name"]) != report["backend"]["name"]
        rows.append(
            (
                safe(v["name"]),
                safe(v["about"], 120),
                f"{v['trainable_parameters']:,}",
                t["examples"],
                t["epochs"],
                f"{t['seconds']:.0f} s" + (f" in {t['backend']}" if elsewhere else "") + " (cached)" * v["cached"],
                " → ".join(f"{loss:.3f}" for loss in t["losses"]),
                f"{t['validation_loss']:.3f}" if t.get("validation_loss") is not None else "",
                v["adapter_sha256"][:12],
            )
        )
    if not rows:
        return ""
    headers = [
        "variant",
        "what it is",
        "parameters",
        "examples",
        "epochs",
        "training time",
        "loss by epoch",
        "validation",
        "SHA-256",
    ]
    notes = (
        "Loss: mean over answer tokens, in nats; validation: of the trained items in phrasings neither trained nor "
        "asked. Parameters of a memory count the rows that training touches."
    )
    return f"## Training\n\n{table(rows, headers)}\n\n{notes}"


def speed(report: Record) -> str:
    """One prompt at a time, variants taking turns."""
    if not report["speed"]:
        return ""
    rows = [
        (
            safe(s["variant"]),
            f"{1000 * s['ttft_s']:.0f}",
            f"{s['prefill_tokens_s']:.0f}",
            f"{s['decode_tokens_s']:.1f}",
            f"{100 * s['overhead']:+.0f}%",
        )
        for s in report["speed"]
    ]
    headers = ["variant", "first token, ms", "prompt tokens/s", "new tokens/s", "time a token against the baseline"]
    return (
        "## Speed at batch 1\n\n"
        + table(rows, headers)
        + "\n\nMedians of rounds in which the variants take turns; under a few percent it is the machine's noise."
    )


def before_and_after(report: Record, samples: Sequence[Record]) -> str:
    """Prompts with each variant's answer beside the right one: the first items of each category by id."""
    greedy = {
        (s["category"], s["item"], s["variant"]): s
        for s in samples
        if s["sample"] == 0 and s["split"] == "rephrased" and s["seed"] == report["run"]["seeds"][0]
    }
    shown = [name for name in views.names(report) if any(v == name for _, _, v in greedy)]
    rows = []
    for category in report["dataset"]["categories"]:
        items = sorted({item for c, item, _ in greedy if c == category})[:EXAMPLES_PER_CATEGORY]
        for item in items:
            found = [greedy.get((category, item, name)) for name in shown]
            first = next(s for s in found if s)
            answers = [f"{'✓' if s['exact'] else '✗'} {safe(s['output'], 40)}" if s else "" for s in found]
            rows.append([safe(first["prompt"], 70), safe(first["expected"], 40), *answers])
    if not rows:
        return ""
    title = "## Before and after, phrasings never trained"
    return f"{title}\n\n{table(rows, ['prompt', 'right answer', *map(safe, shown)])}"


def thresholds(report: Record) -> str:
    """Each requirement with what was measured."""
    rows = [
        (
            safe(t["id"]),
            safe(t["requirement"], 120),
            f"{t['measured']:.4g}",
            f"{t['low']:.4g}",
            "✓" if t["passed"] else "✗",
        )
        for t in report["thresholds"]
    ]
    if not rows:
        return ""
    body = table(rows, ["id", "requirement", "measured", "lower bound", ""])
    missed = sum(not t["passed"] for t in report["thresholds"])
    summary = f"{len(rows)} thresholds, {missed} missed"
    return f"## Thresholds\n\n<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def published(report: Record) -> str:
    """Others' figures with this run's nearest cells beside them, and why they are not the same measurement."""
    cells = views.cells(report, "seen")
    rows = []
    for source, figure, (variant, category) in PUBLISHED:
        before, after = cells.get((category, "baseline")), cells.get((category, variant))
        ours = "not in this run"
        if before and after:
            rates = f"{percent(before['prefix']['rate'])} → {percent(after['prefix']['rate'])}"
            ours = f"{rates} (n = {after['n']}; {safe(variant)}, {safe(category)})"
        rows.append((safe(source, 80), safe(figure, 100), ours))
    return (
        "## Published figures beside these\n\n"
        + table(rows, ["source", "published", "this run, seen, prefix rule"])
        + "\n\nTheir data, prompts, splits and rules differ; only the direction of an effect can be compared. "
        "The prefix rule, under which an answer may go on after the right words, is engram-poc's."
    )
