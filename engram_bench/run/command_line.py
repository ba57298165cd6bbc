"""The command line that runs the suites, for commands that start them."""

from __future__ import annotations

import glob
import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path

from engram_bench import shipped
from engram_bench.options import OPTIONS


def suites(options: list[str]) -> list[str]:
    """The command line of pytest on the suites, with the current folder as its root and further options."""
    suites = shlex.quote(glob.escape(str(shipped.SUITES)))
    places = ["--rootdir", str(Path.cwd()), "--confcutdir", str(shipped.SUITES), "-o", f"testpaths={suites}"]
    unused = ["-p", "no:hypothesispytest", "-p", "no:anyio"]  # these plugins add seconds to each run
    # -P keeps the current folder off sys.path, as the command `pytest` does
    installed = any(point.name == "engram_bench" for point in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "engram_bench.plugin"]
    return [sys.executable, "-P", "-m", "pytest", *places, *unused, *plugin, *_joined(options)]


def _joined(options: list[str]) -> list[str]:
    """Join options and their values: ``--engram-model DIR`` becomes ``--engram-model=DIR``.

    Before it loads plugins, pytest does not know these options. It would take DIR for a path of tests and read the ini
    file beside it.
    """
    takes_value = {f"--engram-{option.name}" for option in OPTIONS if not option.flag}
    found: list[str] = []
    for option in options:
        if found and found[-1] in takes_value:
            found[-1] += f"={option}"
        else:
            found.append(option)
    return found
