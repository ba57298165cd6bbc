"""Time and memory as items, samples, rows, keys and prompts grow: ``python -m benchmarks.growth``, about 15 minutes.

Items: runs the whole command with the baseline and a memory trained for one epoch. A tiny random model keeps the cost
of the model small, so this measures the harness. Samples: sampled answers to a few prompts on the real model. Look-up:
see `benchmarks.lookup`; it needs the model's tokenizer alone. Writes results/growth.json and docs/growth.png;
``--only lookup`` measures one part again and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import lookup
from engram_bench import backends
from engram_bench.data import patterns
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.options import chosen_items
from engram_bench.prompts import PromptEncoder
from engram_bench.report.plots import COLOURS
from engram_bench.shipped import CHECKOUT, PATTERNS
from engram_bench.store import models
from tests.conftest import make_checkpoint

RESULTS = Path(__file__).parent / "results" / "growth.json"
ITEMS = (100, 1_000, 10_000, 100_000)
SAMPLES = (1, 2, 5, 10, 20)
PROMPTS = 64  # that get sampled answers
NEW_TOKENS = 32
MEMORY = """\
name: memory
kind: engram
about: a memory of one epoch
layers: [0, 1]
orders: [2, 3, 4]
heads: 2
rows: 200000
width: 8
training: {epochs: 1, batch_size: 128, lr: 1.0e-2, table_lr: 0.3}
"""


Record = dict[str, Any]


def pairs(count: int) -> str:
    """A pattern file with `count` random pairs."""
    rng = random.Random(0)
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys["".join(rng.choices(string.ascii_lowercase + string.digits, k=7))] = None
    lines = [
        f'  - {{input: "KEY:{key}", output: "{"".join(rng.choices(string.ascii_lowercase, k=3))}"}}' for key in keys
    ]
    return "\n".join(["name: pairs", "examples:", *lines, ""])


def items(counts: tuple[int, ...], model: Path) -> list[Record]:
    """Run the whole command for each number of pairs: total and partial times in seconds, peak memory in MB."""
    found = []
    for count in counts:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "pairs.yaml").write_text(pairs(count), encoding="utf-8")
            (folder / "memory.yaml").write_text(MEMORY, encoding="utf-8")
            options = {"model": model, "patterns": folder / "pairs.yaml", "variants": folder / "memory.yaml"}
            options |= {"backend": "cpu", "samples": 1, "report": folder / "runs"}
            command = [sys.executable, "-m", "pytest", "suites", "-q", "-p", "no:cacheprovider"]
            command += [word for name, value in options.items() for word in (f"--engram-{name}", str(value))]
            started = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, env={**os.environ, "ENGRAM_BENCH_CACHE": str(folder)}
            )
            _, _, used = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            report = json.loads((folder / "runs" / "latest" / "report.json").read_text(encoding="utf-8"))
            files = {
                file.name: file.stat().st_size for file in (folder / "runs" / "latest").iterdir() if file.is_file()
            }
        found.append(
            {
                "items": count,
                "seconds": round(seconds, 1),
                "training": round(report["variants"][1]["train"]["seconds"], 2),
                "answering": round(sum(report["run"]["evaluation_s"].values()), 1),
                "memory_mb": used.ru_maxrss // 1024,
                "parameters": report["variants"][1]["trainable_parameters"],
                "files_mb": {name: round(size / 2**20, 2) for name, size in files.items()},
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def samples(counts: tuple[int, ...]) -> list[Record]:
    """Seconds of the real model for each number of sampled answers per prompt."""
    backend = backends.find("cpu").load(models.resolve("bundled").folder)
    asked = chosen_items(patterns.load(PATTERNS), "default").categories["facts"].split("seen")[:PROMPTS]
    prompts = [backend.encoder.prompt(item.input) for item in asked]
    backend.generate(prompts, 2)
    found = []
    for count in counts:
        repeated, seeds = [prompt for prompt in prompts for _ in range(count)], list(range(len(prompts) * count))
        started = time.perf_counter()
        backend.generate(repeated, NEW_TOKENS, seeds=seeds, temperature=0.8)
        seconds = time.perf_counter() - started
        found.append({"samples": count, "seconds": round(seconds, 2), "memory_mb": backend.peak_memory() >> 20})
        print(json.dumps(found[-1]), flush=True)
    return found


def looked_up() -> Record:
    """`lookup.measure` with the real model's tokenizer, and where and how it was measured."""
    from transformers import AutoTokenizer

    encoder = PromptEncoder(AutoTokenizer.from_pretrained(models.resolve("bundled").folder, local_files_only=True))
    found = lookup.measure(encoder, compress_vocabulary(encoder.tokenizer), lookup.points())
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    commit = subprocess.run(describe, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}; {backends.find('cpu').dtype_reason}"
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    return {"commit": commit, "date": date, "dtype": "float32", "machine": machine, "base": lookup.BASE, **found}


PARTS = {
    "seconds": "whole look-up",
    "find_s": "finding a key",
    "accented_s": "finding it in a text with an accent",
    "hash_s": "hash and search for rows",
    "gather_s": "gathering rows",
    "direct_s": "hash and gathering, no search",
}
VARIED = {"rows": "rows held by a layer", "keys": "keys known", "tokens": "tokens of the prompt"}


def draw(grown: Record) -> Figure:
    figure = Figure(figsize=(12.8, 7.2), layout="constrained")
    (time_of_items, memory_of_items, of_samples), below = figure.subplots(2, 3)
    counts = [point["items"] for point in grown["items"]]
    for name, colour in zip(("seconds", "training", "answering"), COLOURS, strict=False):
        label = {"seconds": "whole command"}.get(name, name)
        time_of_items.plot(counts, [point[name] for point in grown["items"]], "o-", color=colour, label=label)
    time_of_items.set(xscale="log", yscale="log", xlabel="items", ylabel="seconds")
    time_of_items.legend()
    memory_of_items.plot(counts, [point["memory_mb"] for point in grown["items"]], "o-", color=COLOURS[0])
    memory_of_items.set(xscale="log", xlabel="items", ylabel="peak memory, MB", ylim=0)
    drawn = [point["samples"] for point in grown["samples"]]
    of_samples.plot(drawn, [point["seconds"] for point in grown["samples"]], "o-", color=COLOURS[0])
    of_samples.set(xlabel=f"sampled answers to each of {PROMPTS} prompts", ylabel="seconds", xlim=(0, None), ylim=0)
    for axis, (varied, title) in zip(below, VARIED.items(), strict=True):
        points = grown["lookup"][varied]
        for (part, label), colour in zip(PARTS.items(), COLOURS, strict=False):
            times = [1e6 * point[part] for point in points]
            axis.plot([point[varied] for point in points], times, "o-", color=colour, label=label)
        axis.set(xscale="log", xlabel=title, ylabel="µs a token of the prompt, one layer", ylim=0)
    below[0].legend()
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", default=",".join(map(str, ITEMS)))
    parser.add_argument("--only", choices=("items", "samples", "lookup"), help="measure one part, keep the others")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        measures: dict[str, Callable[[], Any]] = {
            "items": lambda: items(tuple(map(int, args.items.split(","))), make_checkpoint(Path(place))),
            "samples": lambda: samples(SAMPLES),
            "lookup": looked_up,
        }
        kept = json.loads(RESULTS.read_text(encoding="utf-8")) if args.only else {}
        grown = {name: measure() if args.only in (None, name) else kept[name] for name, measure in measures.items()}
    RESULTS.write_text(json.dumps(grown, indent=1) + "\n", encoding="utf-8")
    draw(grown).savefig(CHECKOUT / "docs" / "growth.png", dpi=100)


if __name__ == "__main__":
    main()
