"""The adapter format, the same for every backend: one safetensors file of arrays and one JSON config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialize

from engram_bench.errors import UsageError
from engram_bench.variants.configs import Config, EngramConfig, HearingConfig

C = TypeVar("C", bound=Config)

# Older formats: 3 lacked the vocabulary hash and the flags for cut keys; 2 lacked row 0; 1 acted within keys, too
FORMAT = 4
# Fields of an n-gram memory that files of this format may lack, and what they mean then; "acts" follows from the span.
ADDED = {"gate": True, "bias": False, "compression": True, "kernel": 0, "dilation": 3}
WEIGHTS, CONFIG = "memory.safetensors", "memory.json"
ANEW = "train it again: --engram-retrain for the cache, engram-bench train --out for a folder of your own"


def save(folder: Path, kind: str, config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write an adapter into an existing folder; each file is replaced as a whole, so a killed process damages none."""
    text = json.dumps({"format": FORMAT, "kind": kind, **config}, indent=2, sort_keys=True) + "\n"
    data = serialize({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    for name, content in ((WEIGHTS, data), (CONFIG, text.encode())):
        new = folder / f".{name}.new"
        new.write_bytes(content)  # with the mode that the umask gives, which the library's own writer ignores
        new.replace(folder / name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change an adapter in place; other processes wait.

    Raises:
        UsageError: the folder cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire()
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; make the folder writable") from error
    try:
        yield
    finally:
        lock.release()


def kind_of(folder: Path) -> str:
    """The kind of the memory saved in a folder; empty if its config file cannot be read."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def engram_config(folder: Path) -> EngramConfig:
    """Read the shape of the n-gram memory saved in a folder.

    Raises:
        UsageError: the folder has no such memory, or its config file is damaged or in another format.
    """
    return _config(folder, "engram", EngramConfig)


def hearing_config(folder: Path) -> HearingConfig:
    """Read the shape of the hearing memory saved in a folder; see `engram_config`."""
    return _config(folder, "engram-hearing", HearingConfig)


def _config(folder: Path, kind: str, fields: type[C]) -> C:
    try:
        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if (stored.pop("format"), stored.pop("kind")) != (FORMAT, kind):
            raise ValueError(f"not an {kind} memory of format {FORMAT}")
        return fields(**stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder}: no memory here ({error}); make one with engram-bench train --out") from error


def beside_lora(folder: Path) -> bool:
    """Whether a memory was trained together with a LoRA, which lies beside it."""
    return (folder / "adapter_config.json").exists()


def load(folder: Path, kind: str, config: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Load the arrays of an adapter that was saved with this kind and config.

    Raises:
        UsageError: a file is missing or damaged, or belongs to another config.
    """
    try:
        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        arrays: dict[str, NDArray[Any]] = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{folder}: this adapter cannot be read ({error}); {ANEW}") from error
    if kind == "engram" and isinstance(stored, dict):
        acts = "everywhere" if stored.get("span") == "text" else "answer"
        stored = {**ADDED, "acts": acts, **stored}
    wanted = json.loads(json.dumps({"format": FORMAT, "kind": kind, **config}))
    if not isinstance(stored, dict) or stored != wanted:
        odd = sorted(k for k in wanted if not isinstance(stored, dict) or stored.get(k) != wanted[k])
        raise UsageError(f"{folder / CONFIG}: {', '.join(odd) or 'fields'} differ from what this variant needs; {ANEW}")
    return arrays
