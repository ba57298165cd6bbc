"""The ladder's table in docs/method.md, from a run's report.

    python benchmarks/ladder_table.py benchmarks/results/ladder/report.json

`pytest suites --engram-profile quick --engram-variants ladder --engram-samples 0` makes such a report.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engram_bench.report import ladder
from engram_bench.report.text import safe

LEFT_OUT = ("train, s",)  # the machine did other work


def text(file: Path) -> str:
    """The columns that hold figures, in Markdown."""
    section = ladder.section(json.loads(file.read_text(encoding="utf-8")), safe)
    kept = [n for n, name in enumerate(section.headers) if name not in LEFT_OUT and any(row[n] for row in section.rows)]
    lines = [[row[n].removesuffix(".0%").removesuffix("%") for n in kept] for row in (section.headers, *section.rows)]
    lines.insert(1, ["---"] * len(kept))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(text(Path(sys.argv[1])))
