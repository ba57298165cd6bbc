"""Helpers that run pytest on the suites in a subprocess."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parent.parent
LIBRARIES = [
    "matplotlib.figure",
    "peft",
    "scipy.stats",
    "statsmodels.regression.linear_model",
    "transformers.models.llama.modeling_llama",
]

# Processes are forked from one that has imported these and done nothing else: that saves seconds for each. Where
# forking is not safe they start from scratch.
_context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_context.set_forkserver_preload(LIBRARIES)


def run(*args: object, **env: str) -> CompletedProcess[str]:
    """``python -m pytest suites`` with arguments, and with variables added to the environment."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = (arguments(*args), environment(**env), out, err)
        process = _context.Process(target=_main, args=given)
        process.start()
        process.join()
        return CompletedProcess(given[0], process.exitcode or 0, out.read_text("utf-8"), err.read_text("utf-8"))


def run_from_scratch(*args: object, **env: str) -> CompletedProcess[str]:
    """The same where what is imported, and when, matters."""
    command = [sys.executable, "-m", "pytest", *arguments(*args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(**env))


def environment(**more: str) -> dict[str, str]:
    """This process's variables and more, without what says that it is a worker of xdist."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")} | more


def arguments(*args: object) -> list[str]:
    return ["-p", "no:cacheprovider", str(ROOT / "suites"), *map(str, args)]


def _main(args: list[str], env: dict[str, str], out: Path, err: Path) -> None:
    """What ``python -m pytest`` does, in a process that has no terminal."""
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = ["pytest", *args]
    import pytest

    sys.exit(pytest.main(args))
