"""Report sections on cost and setup: training, speed, look-up time, and what was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engram_bench.records import Report
from engram_bench.report.text import Section, Show

MOST_LOSSES = 6  # in a cell of the table


def training(report: Report, show: Show) -> Section:
    """How each adapter was trained."""
    rows = []
    for v in report["variants"]:
        t = v["train"]
        if t is None:
            continue
        elsewhere = t.get("backend", report["backend"]["name"]) != report["backend"]["name"]
        rows.append(
            (
                show(v["name"]),
                show(v["about"], 120) + (f" (by {show(v['package'])})" if v.get("package") else ""),
                f"{v['trainable_parameters']:,}",
                str(t["examples"]),
                str(t["epochs"]),
                _steps(t),
                f"{t['seconds']:.0f} s" + (f" in {t['backend']}" if elsewhere else "") + " (cached)" * v["cached"],
                " → ".join(f"{loss:.3f}" for loss in _thinned(t["losses"])),
                f"{t['validation_loss']:.3f}" if t.get("validation_loss") is not None else "",
                _replay(t),
                v["adapter_sha256"][:12],
            )
        )
    return Section(
        "Training",
        headers=(
            *("variant", "what it is", "parameters", "examples", "epochs", "steps"),
            *("training time", "loss by epoch", "validation", "replay texts, KL at the end", "SHA-256"),
        ),
        rows=rows,
        note="Training ends when the answers are learned, if the variant sets a least and a most number of steps. "
        "Loss is the mean over answer tokens, in nats. Validation loss is measured on trained items, each in a "
        "phrasing that is never trained and that its own questions do not use. Replay texts must keep the untouched "
        "model's answers; KL is the divergence from its next-token distributions, in nats per token of the last pass, "
        "over the texts that the adapter can act on. A memory's parameters include only the "
        "table rows that training touches.",
    )


def _steps(train: Mapping[str, Any]) -> str:
    """Optimizer steps, and why there were no more."""
    if not train.get("steps"):
        return ""
    return f"{train['steps']}, {'learned' if train['ended_early'] else 'all'}"


def _replay(train: Mapping[str, Any]) -> str:
    """Number of replay texts, and the divergence from the untouched model on them."""
    return f"{train['replay']}, {train['replay_kl']:.4f}" if train.get("replay") else ""


def _thinned(losses: Sequence[float]) -> Sequence[float]:
    """At most `MOST_LOSSES` of the losses, the first and the last among them."""
    count = min(len(losses), MOST_LOSSES)
    return [losses[round(i * (len(losses) - 1) / max(1, count - 1))] for i in range(count)]


def speed(report: Report, show: Show) -> Section:
    """Speed on one prompt at a time; the variants take turns."""
    rows = [
        (
            show(s["variant"]),
            f"{1000 * s['ttft_s']:.0f}",
            f"{s['prefill_tokens_s']:.0f}",
            f"{s['decode_tokens_s']:.1f}",
            f"{100 * s['overhead']:+.0f}%",
        )
        for s in report["speed"]
    ]
    return Section(
        "Speed at batch 1",
        headers=("variant", "first token, ms", "prompt tokens/s", "new tokens/s", "time per token vs. baseline"),
        rows=rows,
        note=(
            "Medians over rounds in which the variants take turns. Of variants that differ in training or weights "
            "alone, one is measured. Differences of a few percent are machine noise."
        ),
    )


def lookup(report: Report, show: Show) -> Section:
    """Look-up time by table size."""
    rows = []
    for found in report.get("lookup", ()):
        row = [f"{found['rows']:,}", f"{1e6 * found['seconds']:.1f}"]
        if "mapped_bytes" in found:
            row += [f"{1e6 * found['mapped_seconds']:.1f}", size(found["mapped_bytes"])]
        rows.append(row)
    return Section(
        "Look-up time against table size",
        headers=("rows per table", "touched rows, µs", "all rows mapped, µs", "file")[: len(rows[0]) if rows else 0],
        rows=rows,
        note=(
            "Median time per token and layer, hashing included. Touched rows: search among the rows that training "
            "touched; these are equally many for every size, so by construction their time does not depend on it. All "
            "rows mapped: read from a sparse, memory-mapped file of all tables."
        ),
    )


SECTIONS = (training, speed, lookup)


def size(count: int) -> str:
    """Format a number of bytes in B, kB, MB or GB."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    if count >= 1e6:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e3:.0f} kB" if count >= 1e3 else f"{count} B"


def what_was_run(report: Report, show: Show) -> Section:
    """Model, device, data and command of the run."""
    run, backend, model, data = (report[key] for key in ("run", "backend", "model", "dataset"))
    count = data.get("keys_alike", 0)
    trained = "{training}: {training_examples} examples, {replay_texts} texts replayed"
    kept = ", ".join(f"{show(name)} {answers}" for name, answers in run.get("kept", {}).items())
    evaluation, seeds = sum(run["evaluation_s"].values()), ", ".join(map(str, run["seeds"]))
    rows = [
        (
            "started",
            f"{run['started']}; {run['duration_s']:.0f} s in total, {evaluation:.0f} s of it generating answers",
        ),
        ("command", show(" ".join(run["argv"]), 300)),
        ("profile", f"{run['profile']}; seeds {seeds}; {run['samples']} answers sampled at temperature 0.8"),
        ("commit", run["git_commit"] or "not a git checkout"),
        ("model", f"{show(model['id'])}, {model['parameters']:,} parameters, {show(model['source'])}"),
        ("weights", f"SHA-256 {model['sha256'][:16]}"),
        *([("prompt", show(model["prompt"]))] if "prompt" in model else []),
        ("backend", f"{backend['name']} on {backend['device']}, {backend['dtype']} ({show(backend['dtype_reason'])})"),
        ("batch", f"{backend['batch_size']} rows, at most {backend['max_new_tokens']} new tokens"),
        ("speed", ", ".join(f"{show(name)} {rate:.0f}" for name, rate in run["tokens_s"].items()) + " new tokens/s"),
        *([("answers of earlier runs", kept + "; no times are known for these")] if kept else []),
        ("memory", f"{run['peak_memory_mb']:,} MiB at peak"),
        *([("products of matrices", f"{rate:,.0f} GFLOP/s")] if (rate := run.get("matmul_gflops")) else []),
        ("data", f"{data['items']} items in {len(data['categories'])} categories, SHA-256 {data['sha256'][:16]}"),
        *([("keys", f"{count} sets of inputs that a keyed memory cannot tell apart")] if count else []),
        *([("training", trained.format(**data))] if "training" in data else []),
        ("versions", ", ".join(f"{name} {version}" for name, version in backend["versions"].items())),
    ]
    return Section("What was run", headers=("", ""), rows=rows)
