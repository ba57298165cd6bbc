"""Makes the runs of a sweep on this machine, one after the other or several at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from engram_bench.sweep.execute import RUNS, WAIT, Process, State
from engram_bench.sweep.plan import Run

Told = Callable[[Run, State], None]  # is told of each run that has ended


def environment(jobs: int) -> dict[str, str]:
    """This process's environment, with a part of the cores for each of several runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    return {**threads, **os.environ}


def make(runs: Sequence[Run], out: Path, jobs: int, told: Told) -> None:
    """Make runs, `jobs` at once, in order. Ctrl-C ends those under way, which can be resumed, and is raised again."""
    env = environment(jobs)
    processes = {run.name: Process(run, out / RUNS / run.folder, env) for run in runs}
    with ThreadPoolExecutor(jobs) as pool:
        futures: dict[Future[State], Run] = {pool.submit(processes[run.name].finish): run for run in runs}
        try:
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    told(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes.values():
                process.interrupt()
            until = time.monotonic() + WAIT
            for process in processes.values():
                process.end(until)
            raise
