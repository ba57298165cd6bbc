"""Trials of the hearing memory on development questions: ``python -m benchmarks.hearing VARIANT.yaml...``.

Triples of some subjects of the invented world are trained, of others written afterwards. All are asked in sentences
that no run trains and no other profile asks (patterns/prompts/development.yaml). A variant of another kind, such as a
LoRA, is trained and asked alike; nothing is written into it. Adds a row for each variant to results/hearing.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from engram_bench import metrics, variants
from engram_bench.backends.base import Adapter, Text
from engram_bench.backends.hearing import Hearing
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.data import development, patterns, training
from engram_bench.data.items import Category, Item, PatternSet
from engram_bench.data.questions import Question, questions
from engram_bench.memory.hearing import fact_of
from engram_bench.run.session import git_commit
from engram_bench.shipped import PATTERNS
from engram_bench.store import models

RESULTS = Path(__file__).parent / "results" / "hearing.json"
LONGEST = 12  # new tokens
KINDS = 4  # of subjects; each draw has as many of each

Record = dict[str, Any]


def drawn(world: Category, subjects: int, skipped: int, relations: int) -> Category:
    """Some triples of some subjects: `subjects` in all, as many of each kind, after the first `skipped` of each."""
    by_relations: dict[frozenset[str], list[str]] = {}
    of: dict[str, list[Item]] = {}
    for item in world.items:
        of.setdefault(item.names[0], []).append(item)
    for name in sorted(of):
        by_relations.setdefault(frozenset(item.relation for item in of[name]), []).append(name)
    chosen = set()
    for kind, names in sorted(by_relations.items(), key=lambda pair: sorted(pair[0])):
        random.Random(f"hearing:{sorted(kind)}").shuffle(names)
        chosen |= set(names[skipped : skipped + subjects // len(by_relations)])
    items = [item for name in sorted(chosen) for item in sorted(of[name], key=lambda item: item.id)[:relations]]
    return replace(world, items=tuple(items), holds_out=False)


class Asker:
    """Asks questions with an adapter attached, and counts what is right."""

    def __init__(self, model: TorchModel, adapter: Adapter | None) -> None:
        self._model, self._adapter = model, adapter

    def answers(self, prompts: Sequence[str]) -> list[str]:
        encoded = [self._model.encoder.prompt(prompt) for prompt in prompts]
        with self._model.attached(self._adapter):
            return [self._model.encoder.decode(ids) for ids in self._model.generate(encoded, LONGEST)]

    def right(self, asked: Sequence[Question]) -> float:
        """Share of exact answers in percent, or for two keys of answers with both values."""
        found = self.answers([question.prompt for question in asked])
        hits = [
            metrics.exact(answer, question.wanted[0])
            if question.rule == "exact"
            else all(metrics.contains(answer, value) for value in question.wanted)
            for question, answer in zip(asked, found, strict=True)
        ]
        return _percent(hits)

    def recited(self, asked: Sequence[Question], untouched: Sequence[str]) -> float:
        """Share of answers with the stored value, in percent, where the untouched model's has it not."""
        found = self.answers([question.prompt for question in asked])
        told = [
            any(metrics.contains(answer, value) and not metrics.contains(before, value) for value in question.unwanted)
            for question, answer, before in zip(asked, found, untouched, strict=True)
        ]
        return _percent(told)


def _percent(hits: Sequence[bool]) -> float:
    return round(100 * sum(hits) / max(1, len(hits)), 1)


def in_plain_words(category: Category, each: int) -> list[Question]:
    """Each triple in `each` of its relation's sentences."""
    found = []
    for item in category.items:
        for template in category.wordings[item.relation].paraphrased[:each]:
            prompt = template.replace("{name}", item.names[0])
            found.append(Question("paraphrased", item, template, prompt, (item.output,)))
    return found


def trial(model: TorchModel, file: str, train: Category, later: Category, args: argparse.Namespace) -> Record:
    """Train a variant, ask it, and write other facts into it."""
    (variant,) = variants.select(file)[1:]
    one = PatternSet({train.name: train})
    data = training.training_set(one, args.training)
    asked, written = (development.development(PatternSet({c.name: c})).categories[c.name] for c in (train, later))
    mentions = questions(asked, "mention")
    untouched = Asker(model, None).answers([question.prompt for question in mentions])
    with tempfile.TemporaryDirectory() as folder:
        done = model.train(variant, data.examples, args.seed, Path(folder), lambda *_: None, replay=data.replay)
        adapter = model.load_adapter(variant, Path(folder))
    ask = Asker(model, adapter)
    row: Record = {
        "variant": variant.name,
        "about": variant.about,
        "triples": len(train.items),
        "subjects": args.subjects,
        "steps": done.steps,
        "train_s": round(done.seconds),
        "learned": round(done.learned, 3),
        "seen": ask.right(questions(asked, "seen")),
        "rephrased": ask.right(questions(asked, "rephrased")),
        "paraphrased": ask.right(in_plain_words(asked, 3)),
        "both": ask.right(questions(asked, "combined")),
        "recited": ask.recited(mentions, untouched),
        "kl_mention": _kl(model, adapter, [question.prompt for question in mentions], untouched),
        "kl_unrelated": _kl(model, adapter, development.control(), None),
    }
    if isinstance(adapter, Hearing):
        row["written"] = _written(model, adapter, written)
    return row


def _written(model: TorchModel, adapter: Hearing, asked: Category) -> Record:
    """Write the facts of a category, and ask for them."""
    facts, started = [fact_of(item) for item in asked.items], time.perf_counter()
    adapter.reader.facts = adapter.facts.with_facts(facts)
    adapter.reader.hold(facts)
    seconds, ask, mentions = (
        time.perf_counter() - started,
        Asker(model, cast(Adapter, adapter)),
        questions(asked, "mention"),
    )
    untouched = Asker(model, None).answers([question.prompt for question in mentions])
    return {
        "facts": len(facts),
        "s_a_fact": round(seconds / len(facts), 3),
        "seen": ask.right(questions(asked, "seen")),
        "rephrased": ask.right(questions(asked, "rephrased")),
        "paraphrased": ask.right(in_plain_words(asked, 3)),
        "both": ask.right(questions(asked, "combined")),
        "recited": ask.recited(mentions, untouched),
    }


def _kl(model: TorchModel, adapter: Adapter, prompts: Sequence[str], answers: Sequence[str] | None) -> float:
    """Mean divergence on the untouched model's answers, nats per token."""
    found = Asker(model, None).answers(prompts) if answers is None else answers
    texts: list[Text] = [
        (model.encoder.prompt(prompt), model.encoder.answer(answer))
        for prompt, answer in zip(prompts, found, strict=True)
    ]
    return float(f"{model.collateral(adapter, texts, answers_only=True).kl_mean:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", help="names of built-in variants, or YAML files")
    parser.add_argument("--subjects", type=int, default=8, help="that are trained")
    parser.add_argument("--relations", type=int, default=8, help="triples of each subject")
    parser.add_argument("--later", type=int, default=4, help="subjects whose triples are written afterwards")
    parser.add_argument("--training", default="rich")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    world = patterns.load(PATTERNS).categories["world"]
    train = drawn(world, args.subjects, 0, args.relations)
    later = drawn(world, args.later, args.subjects // KINDS, args.relations)
    model = TorchModel(models.resolve("bundled").folder, "cpu")
    for file in args.variants:
        started = time.perf_counter()
        row = trial(model, file, train, later, args)
        row |= {"seed": args.seed, "training": args.training, "dtype": model.dtype, "commit": git_commit()}
        row["all_s"] = round(time.perf_counter() - started)
        known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
        args.out.write_text(json.dumps([*known, row], indent=1) + "\n", encoding="utf-8")
        print(json.dumps(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
