"""The steps of `gpu_kit.sh run` as Markdown, for docs/gpu.md: outcome, time, use of the GPU, peak memory, speed.

    python benchmarks/gpu_table.py gpu-kit/box/results

It needs Python alone and reads whatever is there, so it also works after a run that was cut.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def steps(folder: Path) -> list[list[str]]:
    """One row per step that was begun, in that order; of a step that ran twice, its last outcome."""
    last: dict[str, list[str]] = {}
    file = folder / "steps.tsv"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        name, *rest = line.split("\t")
        last[name] = rest
    found = []
    for name, (outcome, seconds, limit) in last.items():
        skipped = outcome.startswith("skipped")
        time = "" if skipped else f"{seconds} of {limit}"
        found.append([name, outcome, time, "" if skipped else busy(folder, name), peak(folder, name)])
    return found


def busy(folder: Path, name: str) -> str:
    """Mean and highest utilisation of the GPU by nvidia-smi, once a second; "" without a GPU."""
    file = folder / f"{name}.gpu.csv"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    used = [int(first) for line in lines if (first := line.partition(",")[0].strip()).isdigit()]
    return f"{statistics.mean(used):.0f}, at most {max(used)}" if used else ""


def report(folder: Path, name: str) -> dict[str, Any]:
    """The newest report.json of a run of the suites, or what was kept of it as NAME.json; {} without either."""
    files = sorted(file for file in (folder / name).glob("*/report.json") if file.parent.name != "latest")
    return json.loads(files[-1].read_text(encoding="utf-8")) if files else measured(folder, name)


def measured(folder: Path, name: str) -> dict[str, Any]:
    """What a step wrote to a JSON file of its own; {} if it wrote none."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def peak(folder: Path, name: str) -> str:
    """Peak memory in GB: the device's, on a CPU the process's."""
    in_report = 1e6 * report(folder, name).get("run", {}).get("peak_memory_mb", 0)
    found = measured(folder, name).get("peak_memory", in_report)
    return f"{found / 1e9:.1f}" if found else ""


def variants(folder: Path, name: str) -> list[list[str]]:
    """One row per variant of a run: training, tokens per second together and one prompt at a time."""
    found = report(folder, name)
    if not found:
        return []
    alone = {speed["variant"]: f"{speed['decode_tokens_s']:.1f}" for speed in found["speed"]}
    rows = []
    for variant in found["variants"]:
        own, train = variant["name"], variant["train"]
        seconds = f"{train['seconds']:.1f}{' (cached)' * variant['cached']}" if train else ""
        together = found["run"]["tokens_s"].get(own)
        rows.append([name, own, seconds, f"{together:.0f}" if together else "", alone.get(own, "")])
    return rows


NAMES = ("smoke", "quick", "default", "ladder", "ablations", "unsloth", "again", "workers")  # steps that run the suites
WAYS = ("seen", "rephrased", "paraphrased", "combined", "applied", "mention", "contradicted", "neighbour")


def ways(folder: Path, name: str) -> list[list[str]]:
    """One row per variant of a run: its right answers in each way, in %; and its KL on unrelated text."""
    rows = []
    for line in report(folder, name).get("scorecard", ()):
        groups = [line[group] or {} for group in ("reliability", "generality", "portability", "locality")]
        rates = {way["way"]: way["rate"] for group in groups for way in group.get("ways", ())}
        kl = line["kl"] or {}
        shown = "by construction" if kl.get("by_construction") else f"{kl['mean']:.2f}" if "mean" in kl else ""
        cells = [f"{100 * rates[way]:.0f}" if way in rates else "" for way in WAYS]
        rows.append([name, line["variant"], *cells, shown])
    return rows


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, and an empty line; "" without rows."""
    lines = [f"| {' | '.join(row)} |" for row in (headers, ["---"] * len(headers), *rows)]
    return "\n".join(lines) + "\n\n" if rows else ""


def numbers(*values: float) -> list[str]:
    """Numbers for a table's row."""
    return [f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}" for value in values]


def text(folder: Path) -> str:
    """All tables of a folder of results."""
    rows = steps(folder)
    made = table(["step", "outcome", "seconds, of at most", "GPU busy, %", "peak memory, GB"], rows)
    headers = ["step", "variant", "training, s", "new tokens/s", "one prompt at a time"]
    made += table(headers, [row for name in NAMES for row in variants(folder, name)])
    made += table(
        ["step", "variant", *WAYS, "KL, unrelated text"],
        [row for name in NAMES for row in ways(folder, name)],
    )
    cost = [
        [s["memory"], str(s["batch"]), *numbers(1000 * s["seconds"], s["tokens_s"], 100 * s["overhead"])]
        for s in measured(folder, "cost").get("steps", [])
    ]
    made += table(["memory", "batch", "ms a step", "tokens/s", "overhead, %"], cost)
    profile = [
        [s["step"], str(s["batch"]), f"{1000 * s['seconds']:.2f}", s["per_second"]]
        for s in measured(folder, "profile").get("steps", [])
    ]
    return made + table(["profiled step", "batch", "ms", "per second"], profile)


if __name__ == "__main__":
    print(text(Path(sys.argv[1])), end="")
