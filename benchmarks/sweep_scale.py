"""What a large sweep costs beside its runs: ``python -m benchmarks.sweep_scale RUN_FOLDER``, about 5 minutes.

RUN_FOLDER is the folder of one finished run of a sweep (``my-runs/runs/NAME``), which stands for all of them. Reading a
file of so many runs, finding out which are done, and the table are measured on copies of it. With Ray (needed), tasks
that do nothing are measured on a cluster of three nodes on this machine. Writes results/sweep-scale.json, prints the
table of docs/large-sweeps.md; without RUN_FOLDER it only prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engram_bench.run.session import git_commit
from engram_bench.store import models
from engram_bench.sweep import cluster, reading, table
from engram_bench.sweep.execute import RUNS, state, write_made_of
from tests.conftest import make_checkpoint

RESULTS = Path(__file__).parent / "results" / "sweep-scale.json"
RUN_COUNTS = (10, 100, 1_000)
TASKS = 300
NODES = 3

Record = dict[str, Any]


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 2)


def of_folder(run: Path, count: int, place: Path) -> Record:
    """Reading a file of `count` runs, finding out which are done, and writing the table of all."""
    half = max(1, count // 10)
    rates = ", ".join(f"{(n + 1) / 1e4}" for n in range(half))
    file = place / "sweep.yaml"
    file.write_text(
        f"base: {{variants: lora}}\ngrid: {{seeds: {list(range(count // half))}, lora.training.lr: [{rates}]}}\n"
    )
    found = {"runs": count, "read_s": seconds(lambda: reading.read(file))}
    runs = reading.read(file).runs
    finished = next(path for path in sorted(run.iterdir(), reverse=True) if (path / "report.json").is_file())
    for one in runs:
        folder = place / RUNS / one.folder
        (folder / finished.name).mkdir(parents=True)
        os.link(finished / "report.json", folder / finished.name / "report.json")
        write_made_of(one, folder)
    found["state_s"] = seconds(lambda: [state(place / RUNS / one.folder) for one in runs])
    found["table_s"] = seconds(lambda: table.written(runs, place, "kl", "generality", lambda *_: []))
    return found


def size(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files below a folder."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files), len(files)


def start(place: Path) -> float:
    """Seconds of a run with a tiny model that answers one category with the baseline: process, imports, report."""
    checkpoint = make_checkpoint(place / "tiny")
    items = place / "items.yaml"
    lines = "".join(f'  - {{input: "K:{letter}", output: "{letter}"}}\n' for letter in "abcde")
    items.write_text(f"name: items\ndescription: few\nexamples:\n{lines}")
    line = [sys.executable, "-m", "engram_bench.cli", "bench", "--engram-profile=facts", "-q"]
    options = {"model": checkpoint, "patterns": items, "variants": "baseline", "report": place / "runs"}
    line += [f"--engram-{name}={value}" for name, value in options.items()]
    return statistics.median(
        seconds(lambda: subprocess.run(line, check=True, capture_output=True, cwd=place)) for _ in range(3)
    )


def on_ray() -> Record:
    """Tasks that do nothing, on a cluster of this machine: the first on each node, and then many."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    for _ in range(NODES):
        nodes.add_node(num_cpus=1, memory=2**30, object_store_memory=80 * 2**20)
    nodes.wait_for_nodes()
    with cluster.connected(nodes.address, None) as ray:
        task = ray.remote(lambda: os.getpid()).options(num_cpus=1)
        first = seconds(lambda: ray.get([task.remote() for _ in range(NODES)]))
        many = seconds(lambda: ray.get([task.remote() for _ in range(TASKS)]))
    nodes.shutdown()
    return {"nodes": NODES, "first_s": first, "tasks": TASKS, "tasks_s": many}


def text(found: Record, runs: int = 1_000, nodes: int = 50) -> str:
    """What was measured, and what follows for so many runs on so many nodes, in Markdown."""
    most = found["sweep"][-1]
    run, code, ray, model = found["run"], found["code"], found["ray"], found["model_bytes"]
    each = ray["tasks_s"] / ray["tasks"]
    table = found["sweep"][-1]["table_s"] / most["runs"]
    rows = [
        ("part", "measured", f"{runs:,} runs on {nodes} nodes"),
        ("---", "---", "---"),
        (
            "reading and checking the file",
            f"{most['read_s']} s for {most['runs']:,} runs",
            f"{most['read_s']:.0f} s, once",
        ),
        ("which runs are done", f"{most['state_s']} s for {most['runs']:,} folders", "at the start and at the end"),
        (
            "a task that does nothing",
            f"{1e3 * each:.1f} ms; the first on a node {ray['first_s']:.0f} s",
            f"{runs * each:.1f} s in all",
        ),
        (
            "start of a run: process, imports, report",
            f"{found['start_s']:.0f} s",
            f"{runs * found['start_s'] / nodes / 60:.0f} min of each node",
        ),
        (
            "the package's code",
            f"{code['bytes'] / 1e6:.1f} MB in {code['files']} files",
            f"{nodes * code['bytes'] / 1e6:.0f} MB from one node",
        ),
        (
            "the model in a node's cache",
            f"{model / 1e6:.0f} MB",
            f"{nodes * model / 1e9:.0f} GB, all at once at the start",
        ),
        (
            "a run's folder",
            f"{run['bytes'] / 1e6:.1f} MB in {run['files']} files",
            f"{runs * run['bytes'] / 1e9:.1f} GB in {runs * run['files']:,} files",
        ),
        (
            "the table",
            f"{most['table_s']} s for {most['runs']:,} reports of {found['report_bytes'] / 1e3:.0f} kB",
            f"{runs * table:.0f} s, once",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of one finished run")
    run = parser.parse_args().run
    if run is None:
        print(text(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory() as aside:
        counted = []
        for count in RUN_COUNTS:
            place = run.parent / f".scale-{count}"  # on the same disk, for links
            place.mkdir()
            try:
                counted.append(of_folder(run, count, place))
            finally:
                shutil.rmtree(place)
        code = size(cluster._code(Path(aside)))
        result = {
            "commit": git_commit(),
            "machine": f"{os.cpu_count()} cores",
            "sweep": counted,
            "report_bytes": next(run.glob("*/report.json")).stat().st_size,
            "run": dict(zip(("bytes", "files"), size(run), strict=True)),
            "code": dict(zip(("bytes", "files"), code, strict=True)),
            "model_bytes": size(models.resolve("bundled").folder)[0],
            "start_s": start(Path(aside)),
            "ray": on_ray(),
        }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text(result))


if __name__ == "__main__":
    main()
