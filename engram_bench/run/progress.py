"""Live progress: redraws one line on a terminal; elsewhere prints a line now and then and at the end of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engram_bench.run.estimate import words

LINE_EVERY = 30.0  # seconds between lines without a terminal
REDRAW_EVERY = 0.1  # seconds between redraws on a terminal
BAR_WIDTH = 30


class Reporter:
    """Shows ``(what, done, total)`` calls; the part of `what` before ": " names the step that is timed.

    A call with a total of 0 is a note, shown as a line of its own.

    Draws on each call, without rich's live display: that one writes from a thread, whose output pytest captures.

    Args:
        stream: a text stream, or None to show nothing.

    Attributes:
        left: tells from such a call how many seconds the run has still to go, see `estimate.Left`; None: nobody knows.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.left: Callable[[str, int, int], float | None] | None = None
        self._step = ""
        self._started = self._shown = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._stream is None:
            return
        if not total:
            self._stream.write(f"  {what}\n")
            return
        now = time.monotonic()
        left = self.left(what, done, total) if self.left else None
        step, terminal = what.partition(": ")[0], self._stream.isatty()
        if step != self._step:
            self._step, self._started, self._shown = step, now, 0.0
            if terminal:
                self._stream.write("\n")  # keep pytest's own line
        if done < total and now - self._shown < (REDRAW_EVERY if terminal else LINE_EVERY):
            return
        self._shown = now
        counted = f"{done}/{total} {now - self._started:.0f} s"
        if left is not None:
            counted += f", about {words(left)} left"
        if terminal:
            self._draw(what, done, total, counted)
        else:
            self._stream.write(f"  {what} {counted}\n")
        self._stream.flush()
        if done >= total:
            self._step = ""

    def _draw(self, what: str, done: int, total: int, counted: str) -> None:
        self._stream.write("\r\x1b[2K")
        if done < total:
            console = Console(file=self._stream)
            row = Table.grid(padding=(0, 1))
            bar = ProgressBar(total, done, width=BAR_WIDTH)
            row.add_row(Text(f"  {what}"), bar, Text(counted))
            with console.capture() as drawn:
                console.print(row)
            self._stream.write(drawn.get().splitlines()[0])


class Uncaptured:
    """A progress callable whose output bypasses pytest's capturing."""

    def __init__(self, reporter: Reporter, capture: Any) -> None:
        self.reporter, self._capture = reporter, capture

    def __call__(self, what: str, done: int, total: int) -> None:
        with self.off():
            self.reporter(what, done, total)

    def off(self) -> AbstractContextManager[None]:
        """Suspend capturing, for code that writes to the terminal itself."""
        context: AbstractContextManager[None] = self._capture.global_and_fixture_disabled()
        return context
