"""The loop of every program here: load a model once, then read each job and write its result as a line of JSON."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

Job = dict[str, Any]
Result = dict[str, Any]


def serve(work: Callable[[Job], Result], packages: tuple[str, ...]) -> None:
    """Write the versions of Python and the packages, then answer jobs until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print to stdout
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({"python": platform.python_version(), **versions}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), file=answers, flush=True)
