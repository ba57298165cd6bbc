"""Logs the figures of runs to trackio, which keeps them in a folder of this machine and shows them side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from engram_bench.data.ways import GROUPS
from engram_bench.errors import UsageError
from engram_bench.records import Record
from engram_bench.report.runs import Run
from engram_bench.report.text import inert

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # trackio would send the figures there
FIGURES = (
    *("kl_with_keys", "train_seconds", "adapter_bytes"),
    *("seconds_per_right", "tokens_per_right", "bytes_per_right"),
)


def library() -> Any:
    """Import trackio, so that it asks no server: it would look up the name of whoever is logged in to the hub.

    Raises:
        UsageError: trackio is not installed, or is set up to send its figures elsewhere.
    """
    if sent := [name for name in ELSEWHERE if os.environ.get(name)]:
        raise UsageError(f"--track: figures stay on this machine, but {sent[0]} sends them elsewhere; unset it")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import trackio
    except ImportError as error:
        raise UsageError(f'--track: {error}; pip install "engram-bench[tracking]"') from error
    return trackio


def track(runs: Sequence[Run], project: str) -> list[str]:
    """Log each run's scorecard as one trackio run of a project, unless the project has a run of these answers.

    Returns:
        A line per run: what was done.

    Raises:
        UsageError: see `library`; trackio does not take the name of the project; or it did not keep a run.
    """
    trackio = library()
    told = []
    for run in runs:
        if identity(run.report) in _known(trackio, project):
            told.append(inert(f"{run.name}: is in {project} already"))
            continue
        try:
            with redirect_stdout(sys.stderr):
                trackio.init(
                    project=project, name=run.name, config=config(run.report), embed=False,
                    auto_log_gpu=False, auto_log_cpu=False,
                )  # fmt: skip
                trackio.log(figures(run.report), step=0)
                trackio.finish()
        except (ValueError, OSError) as error:
            raise UsageError(f"--track: {project}: {' '.join(str(error).split())}") from error
        if identity(run.report) not in _known(trackio, project):  # trackio warns of a full disk and goes on
            raise UsageError(f"--track: trackio did not keep {run.name}; see its messages above")
        told.append(inert(f"{run.name}: logged to {project}"))
    return told


def _known(trackio: Any, project: str) -> set[str]:
    """Identities of the runs that a project has; empty if there is no such project."""
    try:
        return {str((run.config or {}).get("answers")) for run in trackio.Api().runs(project)}
    except ValueError:
        return set()


def identity(report: Record) -> str:
    """What tells the answers of one run from those of another."""
    found = report["run"].get("answers", {})
    return f"{report['run']['started']} {found.get('sha256', '')}".strip()


def config(report: Record) -> Record:
    """What a run was made with, for filters and labels."""
    run, backend = report["run"], report["backend"]
    return {
        **{key: run[key] for key in ("started", "profile", "seeds", "samples", "git_commit")},
        **{"backend": backend["name"], "device": backend["device"], "dtype": backend["dtype"]},
        "model": report["model"]["id"],
        "model_sha256": report["model"]["sha256"],
        "dataset_sha256": report["dataset"]["sha256"],
        "training": report["dataset"].get("training", "bare"),
        "complete": run.get("complete", True),
        "partial": run.get("partial", ""),
        "answers": identity(report),
    }


def figures(report: Record) -> dict[str, float]:
    """The scorecard as "variant/figure": rates as shares, KL in nats per token, seconds, tokens, bytes.

    What was not measured is left out, and so is what a definition decides.
    """
    found: dict[str, float | None] = {}
    for row in report.get("scorecard", ()):
        of = {
            **{group: row[group] and row[group]["rate"] for group in GROUPS},
            "kl": row["kl"]["mean"] if row["kl"] and not row["kl"]["by_construction"] else None,
            "recited": row["recited"] and row["recited"]["rate"],
            **{name: row.get(name) for name in FIGURES},
            "token_efficiency": row["token_efficiency"]["mean"] if row.get("token_efficiency") else None,
        }
        found |= {f"{row['variant']}/{name}": value for name, value in of.items()}
    return {name: value for name, value in found.items() if value is not None}
