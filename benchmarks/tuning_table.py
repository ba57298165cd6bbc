"""The table of searched recipes in docs/method.md, from all trials of `benchmarks/sweeps/tuning.yaml`.

engram-bench sweep benchmarks/sweeps/tuning.yaml --out DIR   # DIR/sweep.csv is kept as results/tuning/sweep.csv
python benchmarks/tuning_table.py
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "tuning" / "sweep.csv"
HEADERS = ("variant", "recipe", "generality", "KL, unrelated", "recited", "steps", "training, s")

Trial = Mapping[str, str]


def trials() -> list[Trial]:
    """All trials that were made, in their order."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "done"]


def front(found: list[Trial]) -> list[Trial]:
    """Those that no other trial equals or beats in generality, KL and recited values at once; best generality first."""
    kept: list[Trial] = []
    for trial in sorted(found, key=costs):  # whatever beats a trial comes before it
        if not any(all(a <= b for a, b in zip(costs(other), costs(trial), strict=True)) for other in kept):
            kept.append(trial)
    return kept


def costs(trial: Trial) -> tuple[float, ...]:
    return -float(trial["generality"]), float(trial["kl"]), float(trial["recited"])


def recipe(trial: Trial) -> str:
    """What a trial changes, such as "lr 0.003, rank 8"."""
    own = {name.rpartition(".")[2]: value for name, value in trial.items() if "." in name and value}
    return ", ".join(f"{name} {value}" for name, value in own.items()) or "as before"


def row(trial: Trial) -> list[str]:
    kept = "0 by construction" if not float(trial["kl"]) else f"{float(trial['kl']):.2f}"
    shares = [f"{100 * float(trial[name]):.0f}%" for name in ("generality", "recited")]
    seconds = f"{float(trial['train_seconds']):.0f}"
    return [f"`{trial['variant']}`", recipe(trial), shares[0], kept, shares[1], trial["train_steps"], seconds]


def text() -> str:
    """Each variant as it was before, and the front of its other trials, in Markdown."""
    every = trials()
    lines: list[list[str]] = [list(HEADERS), ["---"] * len(HEADERS)]
    for name in dict.fromkeys(trial["variant"] for trial in every):
        before, *others = [trial for trial in every if trial["variant"] == name]
        lines += [row(trial) for trial in (before, *front(others))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(text())
