"""The user's cache folder. Entries are built in a temporary folder and then moved in, by one process at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from engram_bench.errors import UsageError


def cache_dir() -> Path:
    """The folder of cached models and adapters: ENGRAM_BENCH_CACHE, or the user's cache folder."""
    override = os.environ.get("ENGRAM_BENCH_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("engram-bench"))


def build_once(folder: Path, build: Callable[[Path], None], *, overwrite: Callable[[], bool] = lambda: False) -> bool:
    """Let `build` fill a new folder and move it to `folder`; do nothing if `folder` exists and `overwrite()` is false.

    While another process builds the same folder, this one waits, and then calls `overwrite` again. An existing folder
    needs no lock, so a read-only cache works. A failed build leaves nothing behind, and the next build removes what a
    killed process left.

    Returns:
        Whether this call built the folder.

    Raises:
        UsageError: the folder cannot be written.
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
        if error.errno is None:  # not from the system: a library raised it for another reason
            raise
        place = error.filename or folder
        raise UsageError(
            f"{place}: {error.strerror}; free disk space, or set ENGRAM_BENCH_CACHE to another folder"
        ) from error
    return True


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old text or the new one, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
