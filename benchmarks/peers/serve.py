"""What every program here has in common: load a model once, then do jobs, a line of JSON in and a line out."""

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
    """Say which versions run here, then answer jobs until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({"python": platform.python_version(), **versions}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), file=answers, flush=True)
