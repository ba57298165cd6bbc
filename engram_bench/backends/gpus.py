"""Assign one GPU to each pytest-xdist worker, before any framework looks for GPUs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import takewhile

WORKER, VISIBLE = "PYTEST_XDIST_WORKER", "CUDA_VISIBLE_DEVICES"


def visible(listed: str | None, installed: Sequence[str]) -> list[str]:
    """GPUs that a process may use. As in CUDA, an empty or negative entry ends the list; None allows all installed."""
    if listed is None:
        return list(installed)
    return list(takewhile(lambda name: name and not name.startswith("-"), (n.strip() for n in listed.split(","))))


def assigned(worker: str, gpus: Sequence[str]) -> str:
    """The GPU of worker ``gwN``: number N, modulo the number of GPUs."""
    return gpus[int(worker.removeprefix("gw")) % len(gpus)]


def note(device: str, workers: int, gpus: int) -> str:
    """Warning that more workers than GPUs gain nothing; empty on a CPU, or if each worker has its own GPU."""
    if device == "cpu" or workers <= gpus:
        return ""
    mend = f"-n {gpus} gives each worker its own GPU" if gpus > 1 else "leave -n out"
    return (
        f"engram_bench: {workers} workers share {gpus} GPU{'s' if gpus > 1 else ''}, so -n does not help: one process "
        f"fills a GPU, and each worker loads its own copy of the model; {mend}"
    )


def available(environ: Mapping[str, str]) -> list[str]:
    """NVIDIA GPUs that a process with this environment may use: by number, or as CUDA_VISIBLE_DEVICES names them."""
    return visible(environ.get(VISIBLE), _installed())


def settle(environ: MutableMapping[str, str]) -> None:
    """Restrict an xdist worker to its own GPU. A second call, or a call outside a worker, changes nothing."""
    if WORKER in environ and (gpus := available(environ)):
        environ[VISIBLE] = assigned(environ[WORKER], gpus)


def _installed() -> list[str]:
    try:
        result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:  # no NVIDIA driver
        return []
    return [str(number) for number, _ in enumerate(line for line in result.stdout.splitlines() if line[:4] == "GPU ")]
