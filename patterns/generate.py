"""Rebuild the derived pattern files, byte for byte: ``python patterns/generate.py``.

Only `synthetic.yaml` is derived; every other file here is written by hand. Keys and values are drawn
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
    (Path(__file__).parent / "synthetic.yaml").write_text(synthetic(), encoding="utf-8")
