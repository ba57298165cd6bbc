"""How much one adapter can store: train 1,000 random pairs and every lookup family together, then ask all items.

``python benchmarks/capacity.py [--variants engram,lora,lora-matched]`` trains each variant from scratch on the same
examples. It prints the time and the share of exact answers, by family and by position of the key in untrained
sentences. It also prints how much unrelated text changes. No items are held out, because this measures storage. Each
variant trains as many epochs as fit into five minutes on two CPU cores.
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
from engram_bench.data.questions import Question
from engram_bench.shipped import PATTERNS
from engram_bench.store import models

GROUPS = ("lookups", "synthetic")
EPOCHS = {"engram": 2, "lora": 1, "lora-matched": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default=",".join(EPOCHS))
    parser.add_argument("--each", type=int, default=1, metavar="N", help="ask only every Nth item (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "capacity.json")
    args = parser.parse_args()
    backend = backends.find("cpu").load(models.resolve("bundled").folder)
    categories = [c for c in patterns.load(PATTERNS).categories.values() if c.group in GROUPS]
    pairs = [(category, item) for category in categories for item in category.items]
    examples = [example(phrasing, item) for category, item in pairs for phrasing in category.trained_phrasings(item)]
    seen = [Question("seen", item, *category.question(item, "seen"), (item.output,)) for category, item in pairs][
        :: args.each
    ]
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
