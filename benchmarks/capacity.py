"""How much one adapter holds: 1,000 random pairs and every lookup family, trained together, all of them asked.

``python benchmarks/capacity.py [--variants engram,lora,lora-matched]`` trains each from scratch on the same examples
and prints, beside the time, exact answers by family, by where the key stands in sentences never trained, and what
becomes of unrelated text. Nothing is held out: this is about storage. Each variant gets the epochs that five
minutes on two CPU cores allow it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from recipes import clock, development, tried

from engram_bench import backends, variants
from engram_bench.data import patterns
from engram_bench.data.items import example
from engram_bench.run.evaluate import Question
from engram_bench.shipped import PATTERNS
from engram_bench.store import models

GROUPS = ("lookups", "synthetic")
EPOCHS = {"engram": 2, "lora": 1, "lora-matched": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default=",".join(EPOCHS))
    parser.add_argument("--each", type=int, default=1, metavar="N", help="ask every Nth item alone (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "capacity.json")
    args = parser.parse_args()
    backend = backends.find("cpu").load(models.resolve("bundled").folder)
    categories = [c for c in patterns.load(PATTERNS).categories.values() if c.group in GROUPS]
    pairs = [(category, item) for category in categories for item in category.items]
    examples = [example(phrasing, item) for category, item in pairs for phrasing in category.trained_phrasings(item)]
    seen = [Question("seen", item, *category.question(item, "seen")) for category, item in pairs][:: args.each]
    dev = development([question.item for question in seen])
    found = []
    for variant in variants.select(args.variants)[1:]:
        assert variant.training
        shortened = replace(variant, training=replace(variant.training, epochs=EPOCHS[variant.name]))
        trial, families = tried(backend, variant.name, shortened, examples, seen, dev)
        print(clock(), json.dumps({**asdict(trial), "items": len(pairs), "families": families}), flush=True)
        found.append({**asdict(trial), "items": len(pairs), "asked": len(seen), "families": families})
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps({"variants": found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
