"""How much one adapter stores, at equal loss and in equal time: trained on facts of the invented world, then asked.

``python benchmarks/capacity.py [--facts 100,1000] [--variants engram-keyed,lora]`` trains each variant from scratch on
the rich training of so many facts: until the answers are learned (the same share of right answers for all), and, where
this took longer, once more for `SECONDS`.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from measures import spread
from recipes import Trial, printed, saved, tried

from engram_bench import backends, variants
from engram_bench.backends.training import LEARNED
from engram_bench.data import patterns
from engram_bench.data.items import HELDOUT_SHARE, PatternSet
from engram_bench.data.questions import questions
from engram_bench.data.training import TrainingSet, training_set
from engram_bench.shipped import PATTERNS
from engram_bench.store import models
from engram_bench.variants import Variant

SECONDS = 300  # the requirement on a training's time
ASKED = 240  # facts at most


def in_time(variant: Variant, training: TrainingSet, learned: Trial) -> tuple[Variant, TrainingSet]:
    """As much of a training as fits into `SECONDS`, by the time of its steps: each example at most once."""
    assert variant.training
    steps = int(SECONDS * learned.steps / learned.seconds)
    count = min(len(training.examples), steps * variant.training.batch_size)
    some = tuple(random.Random(0).sample(training.examples, count))
    once = replace(variant.training, steps=(), epochs=max(1, round(steps * variant.training.batch_size / count)))
    return replace(variant, training=once), replace(training, examples=some)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", default="100,1000")
    parser.add_argument("--variants", default="engram-keyed,lora")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "capacity.json")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--model", default="bundled", help="model, as for pytest's --engram-model")
    args = parser.parse_args()
    backend = backends.find(args.device).load(models.resolve(args.model).folder)
    world = PatternSet({"world": patterns.load(PATTERNS).categories["world"]})
    found: list[dict[str, Any]] = []
    for count in map(int, args.facts.split(",")):
        data = world.sample(round(count / (1 - HELDOUT_SHARE)))
        training = training_set(data, "rich")
        asked = spread(questions(data.categories["world"], "seen"), ASKED)
        for variant in variants.select(args.variants)[1:]:
            name = f"{variant.name}, {count} facts"
            learned = tried(backend, f"{name}, until {LEARNED:.0%} are right", variant, training, asked)
            found.append(printed(learned))
            if learned.seconds > SECONDS:
                found.append(
                    printed(tried(backend, f"{name}, in {SECONDS} s", *in_time(variant, training, learned), asked))
                )
            saved(args.out, backend, found)


if __name__ == "__main__":
    main()
