"""What models answered in earlier runs, in one SQLite file of the user's cache folder.

An answer is a function of the model, the adapter, the batch of prompts, the decoding and the code. Whoever asks names
all of that, and gets the value that the same question had before. Without this file only time is lost: what is damaged
is dropped, and where nothing can be written, nothing is kept. SQLite's own locks and journal keep it whole beside other
processes and after a kill.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
VERSION = 1  # of the table; a file of another version is dropped
MOST_BYTES = 1 << 28  # then the older half is dropped
PATIENCE = 10  # seconds to wait for another process


class Answers:
    """Values by what they depend on.

    Args:
        file: created on first use.
        tell: called with one line if the file is dropped or cannot be used.
        ask: make every value anew; the new ones are kept.
    """

    def __init__(self, file: Path, tell: Callable[[str], None], *, ask: bool = False) -> None:
        self._file, self._tell, self._ask = file, tell, ask
        self._database: sqlite3.Connection | None = None
        self._usable = True

    def once(self, question: Any, make: Callable[[], T]) -> tuple[T, bool]:
        """The value that `make` returned for the same question before, and true; otherwise a new one, and false.

        Args:
            question: all that the value depends on, as JSON.
            make: returns the value, as JSON.
        """
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()
        if not self._ask and (found := self._do(lambda database: _read(database, key))):
            return found[0], True
        value = make()
        self._do(lambda database: _write(database, key, value))
        return value, False

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Work on the file; None if it cannot be used. A damaged file is replaced by a new one, once."""
        for _ in range(2):
            if not self._usable:
                return None
            try:
                self._database = self._database or _opened(self._file)
                return work(self._database)
            except (sqlite3.OperationalError, OSError) as error:  # a full disk, a folder without permission, a lock
                self._usable = False
                self._tell(f"{self._file}: {error}; answers are not kept")
            except (sqlite3.DatabaseError, zlib.error, ValueError) as error:
                self._tell(f"{self._file}: dropped ({error}); answers are made anew")
                if self._database:
                    self._database.close()
                self._database = None
                for end in ("", "-wal", "-shm"):
                    Path(f"{self._file}{end}").unlink(missing_ok=True)
        return None


def _opened(file: Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(file, timeout=PATIENCE, isolation_level=None)
    (found,) = database.execute("PRAGMA user_version").fetchone()
    if found not in (0, VERSION):
        database.close()
        raise sqlite3.DatabaseError(f"version {found}, not {VERSION}")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")  # after a power cut, the newest values may be missing
    database.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB)")
    database.execute(f"PRAGMA user_version = {VERSION}")
    return database


def _read(database: sqlite3.Connection, key: bytes) -> list[Any] | None:
    """[value], or None."""
    row = database.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    named, value = json.loads(zlib.decompress(row[0]))  # zlib checks its sum
    if named != key.hex():
        raise ValueError("an answer to another question")
    return [value]


def _write(database: sqlite3.Connection, key: bytes, value: Any) -> None:
    packed = zlib.compress(json.dumps([key.hex(), value]).encode())
    database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, packed))
    pages, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    (free,) = database.execute("PRAGMA freelist_count").fetchone()
    if (pages - free) * size > MOST_BYTES:
        database.execute("DELETE FROM answers WHERE rowid <= (SELECT (min(rowid) + max(rowid)) / 2 FROM answers)")
