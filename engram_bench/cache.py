"""The user's cache folder, and how anything gets into it: built aside, moved in whole, by one process at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from engram_bench.errors import UsageError


def cache_dir() -> Path:
    """Where models and adapters are kept: ENGRAM_BENCH_CACHE, or the user's cache folder."""
    override = os.environ.get("ENGRAM_BENCH_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("engram-bench"))


def build_once(folder: Path, build: Callable[[Path], None], *, overwrite: bool = False) -> bool:
    """Have `build` fill a new folder and move it to `folder`, unless it is there already (or `overwrite`).

    A process that finds another one building waits for it. If `build` fails nothing is left behind.

    Returns:
        Whether it was built now.

    Raises:
        UsageError: the place cannot be written to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.is_dir() and not overwrite:
                return False
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as parent:
                new = Path(parent) / "new"
                new.mkdir()
                build(new)
                if folder.is_dir():
                    shutil.rmtree(folder)
                new.replace(folder)
    except OSError as error:
        place, reason = error.filename or folder, error.strerror or error
        raise UsageError(f"{place}: {reason}; free space there, or choose a place by ENGRAM_BENCH_CACHE") from error
    return True
