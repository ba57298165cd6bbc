"""Try recipes of the memories and of LoRA, changing one setting at a time, with the same number of trials for each.

``python benchmarks/sweep.py [--kinds engram-keyed,lora] [--only TEXT]`` prints each trial when it ends. All train on
the rich training of a few items, see `data.training`. The default recipes were chosen by this sweep, on development
sentences and texts (see `recipes`), never on the suites' questions: first recall, then KL and recited values.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes import printed, saved, tried

from engram_bench import backends, variants
from engram_bench.data import patterns
from engram_bench.data.items import PatternSet
from engram_bench.data.questions import questions
from engram_bench.data.training import training_set
from engram_bench.shipped import PATTERNS
from engram_bench.store import models
from engram_bench.variants import Variant

CATEGORIES = ("error_fixes", "facts", "capital", "synthetic", "world")
ITEMS = 8  # of each category
TRIALS: dict[str, list[dict[str, Any]]] = {
    "lora": [
        {},
        {"first_layer": 0, "batch_size": 32},
        {"first_layer": 0},
        {"first_layer": 0.67},
        {"rank": 8, "alpha": 16},
        {"rank": 32, "alpha": 64},
        {"lr": 2e-3},
        {"lr": 5e-3},
        {"replay_weight": 3.0},
        {"batch_size": 8, "lr": 2e-3},
    ],
    "engram-keyed": [
        {},
        {"layers": [0.1, 0.8]},
        {"layers": [0.54, 0.67, 0.8]},
        {"orders": [2, 3]},
        {"heads": 4},
        {"width": 16},
        {"lr": 1e-3},
        {"table_lr": 0.1},
        {"replay_weight": 3.0},
        {"batch_size": 32},
    ],
    "engram": [
        {},
        {"width": 64},
        {"order_dropout": 0.1},
        {"lr": 1e-3},
        {"lr": 1e-2},
        {"table_lr": 0.05},
        {"table_lr": 0.5},
        {"replay_weight": 3.0},
        {"batch_size": 32},
        {"epochs": 16},
    ],
}


def changed(variant: Variant, changes: Mapping[str, Any]) -> Variant:
    """Change fields of a variant's config or training."""
    assert variant.config
    assert variant.training
    own = {name: value for name, value in changes.items() if hasattr(variant.config, name)}
    rest = {name: value for name, value in changes.items() if name not in own}
    return replace(variant, config=replace(variant.config, **own), training=replace(variant.training, **rest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default=",".join(TRIALS))
    parser.add_argument("--only", default="", metavar="TEXT", help="only trials whose name holds this text")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sweep.json")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--model", default="bundled", help="model, as for pytest's --engram-model")
    args = parser.parse_args()
    backend = backends.find(args.device).load(models.resolve(args.model).folder)
    every = patterns.load(PATTERNS)
    data = PatternSet({name: every.categories[name] for name in CATEGORIES}).sample(ITEMS)
    training = training_set(data, "rich")
    seen = [question for category in data.categories.values() for question in questions(category, "seen")]
    known = json.loads(args.out.read_text("utf-8"))["trials"] if args.out.is_file() else []
    found = {trial["name"]: trial for trial in known}
    for kind in args.kinds.split(","):
        for changes in TRIALS[kind]:
            name = f"{kind} " + (", ".join(f"{key} {value}" for key, value in changes.items()) or "as shipped")
            if args.only in name and name not in found:
                base = variants.select(kind)[1]
                found[name] = printed(tried(backend, name, changed(base, changes), training, seen))
                saved(args.out, backend, list(found.values()), items=len(seen), examples=len(training.examples))


if __name__ == "__main__":
    main()
