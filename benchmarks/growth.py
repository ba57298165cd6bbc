"""Time and memory as items, samples and table rows grow: ``python -m benchmarks.growth``, about 15 minutes.

Items: runs the whole command with the baseline and a memory trained for one epoch. A tiny random model keeps the cost
of the model small, so this measures the harness. Samples: sampled answers to a few prompts on the real model. Rows:
table lookup for one token. Writes results/growth.json and docs/growth.png.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from engram_bench import backends, variants
from engram_bench.data import patterns
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.options import chosen_items
from engram_bench.report.plots import COLOURS
from engram_bench.run.speed import lookup_times
from engram_bench.shipped import CHECKOUT, PATTERNS
from engram_bench.store import models
from tests.conftest import make_checkpoint

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


def rows() -> list[Record]:
    """`speed.lookup_times` of the default memory with the real model's vocabulary."""
    backend = backends.find("cpu").load(models.resolve("bundled").folder)
    (_, engram) = variants.select("engram")
    return lookup_times(engram.config, compress_vocabulary(backend.encoder.tokenizer))


def draw(grown: Record) -> Figure:
    figure = Figure(figsize=(12.8, 3.6), layout="constrained")
    time_of_items, memory_of_items, of_samples, of_rows = figure.subplots(1, 4)
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
    sizes = [point["rows"] for point in grown["rows"]]
    for name, label, colour in (("seconds", "touched rows", COLOURS[0]), ("mapped_seconds", "mapped file", COLOURS[1])):
        of_rows.plot(sizes, [point[name] * 1e6 for point in grown["rows"]], "o-", color=colour, label=label)
    of_rows.set(xscale="log", xlabel="rows of a table", ylabel="µs to look up a token", ylim=0)
    of_rows.legend()
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", default=",".join(map(str, ITEMS)))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tiny = make_checkpoint(Path(place))
        grown = {
            "items": items(tuple(map(int, args.items.split(","))), tiny),
            "samples": samples(SAMPLES),
            "rows": rows(),
        }
    (Path(__file__).parent / "results" / "growth.json").write_text(json.dumps(grown, indent=1) + "\n", encoding="utf-8")
    draw(grown).savefig(CHECKOUT / "docs" / "growth.png", dpi=100)


if __name__ == "__main__":
    main()
