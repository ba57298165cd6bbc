"""The user's cache folder, and how anything gets into it: built aside, moved in whole, by one process at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from engram_bench.errors import UsageError


def cache_dir() -> Path:
    """Where models and adapters are kept: ENGRAM_BENCH_CACHE, or the user's cache folder."""
    override = os.environ.get("ENGRAM_BENCH_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("engram-bench"))


def build_once(folder: Path, build: Callable[[Path], None], *, overwrite: Callable[[], bool] = lambda: False) -> bool:
    """Have `build` fill a new folder and move it to `folder`, unless it is there already (and not to `overwrite`).

    A process that finds another one building waits for it, and asks `overwrite` after that. What is there already
    can be had from a cache that cannot be written to. If `build` fails nothing is left behind, and what a killed
    process left is cleared away.

    Returns:
        Whether it was built now.

    Raises:
        UsageError: the place cannot be written to.
    """
    if folder.is_dir() and not overwrite():
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.is_dir() and not overwrite():
                return False
            new = folder.with_name(f".building-{folder.name}")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                build(new)
                if folder.is_dir():
                    shutil.rmtree(folder)
                new.replace(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        if error.errno is None:  # raised by a library, of something else
            raise
        place = error.filename or folder
        raise UsageError(
            f"{place}: {error.strerror}; free space there, or choose a place by ENGRAM_BENCH_CACHE"
        ) from error
    return True


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
