"""Which GPU a worker of pytest-xdist computes on: one each, settled before any framework looks for one."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import takewhile

WORKER, VISIBLE = "PYTEST_XDIST_WORKER", "CUDA_VISIBLE_DEVICES"


def visible(listed: str | None, installed: Sequence[str]) -> list[str]:
    """The GPUs a process may use, as CUDA reads its list: none from the first -1 on; all installed ones without it."""
    if listed is None:
        return list(installed)
    return list(takewhile(lambda name: name and not name.startswith("-"), (n.strip() for n in listed.split(","))))


def assigned(worker: str, gpus: Sequence[str]) -> str:
    """The GPU of the worker ``gwN``: the N-th, counted around where there are fewer."""
    return gpus[int(worker.removeprefix("gw")) % len(gpus)]


def note(device: str, workers: int, gpus: int) -> str:
    """Why more workers than GPUs gain nothing; empty where each has its own, or where there is no GPU."""
    if device == "cpu" or workers <= gpus:
        return ""
    mend = f"-n {gpus} gives each its own" if gpus > 1 else "leave -n out"
    return (
        f"engram_bench: {workers} workers share {gpus} GPU{'s' if gpus > 1 else ''}, so -n does not help: one process "
        f"fills a GPU, and each holds a model of its own there; {mend}"
    )


def available(environ: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs a process with this environment may use, by number or as its list names them."""
    return visible(environ.get(VISIBLE), _installed())


def settle(environ: MutableMapping[str, str]) -> None:
    """Leave a worker the one GPU that is its own; a second call, or one outside of a worker, changes nothing."""
    if WORKER in environ and (gpus := available(environ)):
        environ[VISIBLE] = assigned(environ[WORKER], gpus)


def _installed() -> list[str]:
    try:
        result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:  # no such driver here
        return []
    return [str(number) for number, _ in enumerate(line for line in result.stdout.splitlines() if line[:4] == "GPU ")]
