"""Rebuild what is derived here, byte for byte: ``python patterns/generate.py`` (in an environment with the package).

That is `synthetic.yaml`, and `SHA256`, the fingerprint of all patterns as shipped, by which a run knows whether the
project's own targets and snapshots are about its data. Every other file is written by hand. Keys and values are drawn
independently, so nothing a model knows helps it: what it answers, it stored.
"""

from __future__ import annotations

import random
from pathlib import Path

SEED = 20260107
PAIRS = 125
HEADER = """\
name: synthetic
description: "Random keys and random values from a fixed seed; derived by generate.py, not edited by hand."
version: "1.0"
phrasings:
  trained:
    - "{input}"
    - "Look up {input}"
    - "The key {input} maps to what?"
  rephrased:
    - "Fetch {input}"
    - "Value of {input}"
    - "I need what is stored at {input}, please."
examples:
"""


def synthetic(pairs: int = PAIRS, seed: int = SEED) -> str:
    """The text of synthetic.yaml: `pairs` unique keys ``SYN:`` + 6 characters, values of 3 syllables."""
    rng = random.Random(seed)
    keys: dict[str, str] = {}
    while len(keys) < pairs:
        key = "SYN:" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6))
        keys.setdefault(key, "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)))
    rows = (f'  - input: "{key}"\n    output: "{value}"\n    category: synthetic\n' for key, value in keys.items())
    return HEADER + "".join(rows)


if __name__ == "__main__":
    from engram_bench import patterns

    here = Path(__file__).parent
    (here / "synthetic.yaml").write_text(synthetic(), encoding="utf-8")
    (here / "SHA256").write_text(patterns.load(here).sha256 + "\n", encoding="ascii")
