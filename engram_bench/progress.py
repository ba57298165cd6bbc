"""Live progress on a terminal; on anything else, a line when a step starts and one when it ends."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_EVERY = 30.0  # seconds between lines where there is no terminal to redraw


class Reporter:
    """Shows `(what, done, total)` calls. Each distinct text before the last ": " is one bar.

    Args:
        stream: a text stream, or None to show nothing.
    """

    def __init__(self, stream: Any) -> None:
        self._console = Console(file=stream) if stream else None
        self._bar: Progress | None = None
        self._task: Any = None
        self._title = ""
        self._started = self._last_line = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._console is None:
            return
        title, _, detail = what.partition(": ")
        if title != self._title or self._started == 0.0:
            self._title, self._started = title, time.monotonic()
        if self._console.is_terminal:
            self._draw(what, done, total)
        elif done >= total or time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            seconds = self._last_line - self._started
            self._console.print(f"  {title} {detail} {done}/{total} {seconds:.0f} s", markup=False, highlight=False)
        if done >= total:
            self._started = 0.0

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            # Refreshed by hand: the thread that would do it writes while pytest is capturing.
            quiet: Any = {"redirect_stdout": False, "redirect_stderr": False}
            self._bar = Progress(*columns, console=self._console, transient=True, auto_refresh=False, **quiet)
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()
        self._bar.update(self._task, description=what, completed=done, total=total, refresh=True)
        if done >= total:
            self._bar.stop()
            self._bar = None


class Uncaptured:
    """A progress callable that lets its output through pytest's capturing."""

    def __init__(self, reporter: Reporter, capture: Any) -> None:
        self._reporter, self._capture = reporter, capture

    def __call__(self, what: str, done: int, total: int) -> None:
        with self.off():
            self._reporter(what, done, total)

    def off(self) -> AbstractContextManager[None]:
        """Capturing suspended, for what writes to the terminal by itself."""
        context: AbstractContextManager[None] = self._capture.global_and_fixture_disabled()
        return context
