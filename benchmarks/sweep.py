"""Try recipes of the memory and of LoRA, changing one setting at a time, with the same number of trials for both.

``python benchmarks/sweep.py [--profile quick] [--kinds engram,lora]`` prints each trial when it ends. The default
recipes were chosen by this sweep, on development sentences and texts (see `recipes`), never on the suites' questions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from alterations import altered
from recipes import clock, development, tried

from engram_bench import backends, variants
from engram_bench.data import patterns
from engram_bench.options import PROFILES, chosen_items
from engram_bench.run import evaluate
from engram_bench.shipped import PATTERNS
from engram_bench.store import models
from engram_bench.variants import Variant

TRIALS: dict[str, list[dict[str, Any]]] = {
    "engram": [
        {},
        {"layers": [2]},
        {"layers": [20]},
        {"layers": [2, 14, 24]},
        {"orders": [2, 3]},
        {"heads": 1},
        {"rows": 20_000},
        {"width": 16},
        {"order_dropout": 0.0},
        {"span": "text"},
        {"table_lr": 0.1},
        {"lr": 1e-3},
        {"gate": "open"},
        {"gate": "plain sigmoid"},
        {"convolution": True},
        {"schedule": "constant"},
        {"schedule": "no warm-up"},
        {"schedule": "cosine"},
    ],
    "lora": [
        {},
        {"rank": 4, "alpha": 8},
        {"rank": 32, "alpha": 64},
        {"alpha": 16},
        {"alpha": 64},
        {"lr": 1e-3},
        {"lr": 2e-3},
        {"lr": 5e-3},
        {"batch_size": 16, "lr": 2e-3},
        {"beta2": 0.999},
        {"epochs": 0.5},
        {"epochs": 1.5},
        {"alpha": 128},
        {"alpha": 64, "lr": 2e-3},
        {"alpha": 64, "epochs": 1.5},
        {"schedule": "constant"},
        {"schedule": "no warm-up"},
        {"schedule": "cosine"},
    ],
}
ALTERATIONS = ("gate", "convolution", "schedule")  # not options of a variant; see alterations.py


def changed(variant: Variant, changes: dict[str, Any]) -> Variant:
    """Change fields of a variant's config or training; `epochs` is a factor."""
    assert variant.config
    assert variant.training
    own = {name: value for name, value in changes.items() if hasattr(variant.config, name)}
    rest = {name: value for name, value in changes.items() if name not in own}
    if "epochs" in rest:
        rest["epochs"] = round(variant.training.epochs * rest["epochs"])
    return replace(variant, config=replace(variant.config, **own), training=replace(variant.training, **rest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--kinds", default="engram,lora")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sweep.json")
    args = parser.parse_args()
    backend = backends.find("cpu").load(models.resolve("bundled").folder)
    data = chosen_items(patterns.load(PATTERNS), args.profile)
    seen = evaluate.questions(data, [(name, "seen") for name in data.categories])
    dev = development([question.item for question in seen])
    found = []
    for kind in args.kinds.split(","):
        base = variants.select(kind)[1]
        assert base.training
        epochs = PROFILES[args.profile].epochs.get(kind, base.training.epochs)
        base = replace(base, training=replace(base.training, epochs=epochs))
        for changes in TRIALS[kind]:
            name = f"{kind} " + (", ".join(f"{key} {value}" for key, value in changes.items()) or "as shipped")
            beside = {key: value for key, value in changes.items() if key in ALTERATIONS}
            variant = changed(base, {key: value for key, value in changes.items() if key not in ALTERATIONS})
            with altered(backend, **beside):
                trial, _ = tried(backend, name, variant, data.training_examples(), seen, dev)
            print(clock(), json.dumps(asdict(trial)), flush=True)
            found.append(asdict(trial))
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(json.dumps({"profile": args.profile, "trials": found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
