"""Trials of the hearing memory on development questions: ``python -m benchmarks.hearing VARIANT.yaml...``.

Triples of some subjects of the invented world are trained. Others are written afterwards: of other subjects; of
relations that were held out of the training (--unseen); and a front desk's facts, which are no triples. All triples are
asked in sentences that no run trains and no other profile asks (patterns/prompts/development.yaml). A variant of
another kind, such as a LoRA, is trained and asked alike; nothing is written into it. Adds a row for each variant to
results/hearing.json; ``--table`` prints them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import own_facts
from engram_bench import metrics, variants
from engram_bench.backends.base import Adapter, Text
from engram_bench.backends.hearing import Hearing
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.data import development, patterns, training
from engram_bench.data.items import Category, Item, PatternSet
from engram_bench.data.questions import Question, questions
from engram_bench.memory.hearing import Facts, fact_of
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
    """Asks questions with an adapter attached, and counts what is right.

    Args:
        most: questions of a kind, drawn.
    """

    def __init__(self, model: TorchModel, adapter: Adapter | None, most: int) -> None:
        self._model, self._adapter, self._most = model, adapter, most

    def answers(self, prompts: Sequence[str], adapter: Adapter | None) -> list[str]:
        encoded = [self._model.encoder.prompt(prompt) for prompt in prompts]
        with self._model.attached(adapter):
            return [self._model.encoder.decode(ids) for ids in self._model.generate(encoded, LONGEST)]

    def right(self, asked: Sequence[Question]) -> float | None:
        """Share of right answers in percent: exact, or with all values, of two keys or of the prompt."""
        some = self._some(asked)
        found = self.answers([question.prompt for question in some], self._adapter)
        return _percent(
            metrics.exact(answer, question.wanted[0])
            if question.rule == "exact"
            else all(metrics.contains(answer, value) for value in question.wanted)
            for question, answer in zip(some, found, strict=True)
        )

    def measures(self, asked: Category) -> Record:
        """What is right in each way, what is recited, and the divergence where a name is only mentioned."""
        plain = in_plain_words(asked, 3)
        return {
            "seen": self.right(questions(asked, "seen")),
            "rephrased": self.right(questions(asked, "rephrased")),
            "paraphrased": self.right(plain),
            "both": self.right(questions(asked, "combined")) if plain else None,
            **(self._mentioned(questions(asked, "mention")) if plain else {}),
        }

    def _mentioned(self, asked: Sequence[Question]) -> Record:
        some = self._some(asked)
        prompts = [question.prompt for question in some]
        before, after = self.answers(prompts, None), self.answers(prompts, self._adapter)
        told = (
            any(metrics.contains(now, value) and not metrics.contains(then, value) for value in question.unwanted)
            for question, then, now in zip(some, before, after, strict=True)
        )
        return {"recited": _percent(told), "kl_mention": self.kl(prompts, before)}

    def kl(self, prompts: Sequence[str], answers: Sequence[str]) -> float:
        """Mean divergence on the untouched model's answers, nats per token."""
        texts: list[Text] = [
            (self._model.encoder.prompt(prompt), self._model.encoder.answer(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return float(f"{self._model.collateral(self._adapter, texts, answers_only=True).kl_mean:.3g}")

    def _some(self, asked: Sequence[Question]) -> list[Question]:
        return random.Random(0).sample(list(asked), min(self._most, len(asked)))


def _percent(hits: Iterable[bool]) -> float | None:
    every = list(hits)
    return round(100 * sum(every) / len(every), 1) if every else None


def in_plain_words(category: Category, each: int) -> list[Question]:
    """Each triple in `each` of its relation's sentences."""
    found = []
    for item in category.items:
        for template in category.wordings[item.relation].paraphrased[:each] if item.relation else ():
            prompt = template.replace("{name}", item.names[0])
            found.append(Question("paraphrased", item, template, prompt, (item.output,)))
    return found


def of_relations(category: Category, relations: Collection[str], *, held_out: bool) -> Category:
    """The triples of these relations, or of all others."""
    items = tuple(item for item in category.items if (item.relation in relations) == held_out)
    return replace(category, items=items)


def desk() -> Category:
    """A front desk's facts, whose keys are whole questions."""
    with tempfile.TemporaryDirectory() as folder:
        own_facts.make(Path(folder))
        (category,) = patterns.load(Path(folder) / "f24.yaml").categories.values()
    return category


def trial(model: TorchModel, file: str, train: Category, later: Category, args: argparse.Namespace) -> Record:
    """Train a variant, ask it, and write other facts into it."""
    (variant,) = variants.select(file)[1:]
    unseen = held_out(train, args.unseen)
    known = of_relations(train, unseen, held_out=False)
    data = training.training_set(PatternSet({train.name: known}), args.training)
    with tempfile.TemporaryDirectory() as folder:
        done = model.train(variant, data.examples, args.seed, Path(folder), _shown, replay=data.replay)
        adapter = model.load_adapter(variant, Path(folder))
    ask, unrelated = Asker(model, adapter, args.most), development.control()
    row: Record = {
        "variant": variant.name,
        "about": variant.about,
        "triples": len(known.items),
        "subjects": args.subjects,
        "steps": done.steps,
        "train_s": round(done.seconds),
        "learned": round(done.learned, 3),
        **ask.measures(_asked(known)),
        "kl_unrelated": ask.kl(unrelated, ask.answers(unrelated, None)),
    }
    if isinstance(adapter, Hearing) and adapter.config.rows:
        others = {"other names": of_relations(later, unseen, held_out=False), "desk": desk()}
        if unseen:
            others["other relations"] = of_relations(later, unseen, held_out=True)
        row["written"] = {name: _written(ask, adapter, facts) for name, facts in others.items()}
    return row


def _shown(text: str, done: int, steps: int) -> None:
    if done % 25 == 0:
        print(f"{time.strftime('%X')} {done}/{steps} {text}", file=sys.stderr, flush=True)


def held_out(world: Category, each: int) -> set[str]:
    """Relations that are not trained: `each` of every kind of subject."""
    of: dict[str, set[str]] = {}
    for item in world.items:
        of.setdefault(item.names[0], set()).add(item.relation)
    kinds = sorted({tuple(sorted(relations)) for relations in of.values()})
    return {relation for kind in kinds for relation in random.Random(str(kind)).sample(kind, each)}


def _asked(category: Category) -> Category:
    return development.development(PatternSet({category.name: category})).categories[category.name]


def _written(ask: Asker, adapter: Hearing, category: Category) -> Record:
    """Write the facts of a category alone into a reader, and ask for them."""
    facts, before = [fact_of(item) for item in category.items], adapter.facts
    started = time.perf_counter()
    adapter.reader.facts = Facts().with_facts(facts)
    adapter.reader.hold(facts)
    seconds = time.perf_counter() - started
    found = ask.measures(_asked(category))
    adapter.reader.facts = before
    return {"facts": len(facts), "s_a_fact": float(f"{seconds / len(facts):.2g}"), **found}


def table(rows: Sequence[Record]) -> str:
    """The trials as a table, the facts written afterwards beside the trained ones."""
    shown = []
    for row in rows:
        written = row.get("written")
        other, desk_, relations = (
            ({}, {}, {})
            if not isinstance(written, dict)
            else (written.get(name, {}) for name in ("other names", "desk", "other relations"))
        )
        shown.append(
            [f"{row['variant']}, {row['commit'][:7]}", row["triples"], row["steps"], row["train_s"]]
            + [row.get(name) for name in ("seen", "paraphrased", "both", "recited", "kl_mention")]
            + [other.get("paraphrased"), other.get("both"), relations.get("paraphrased"), desk_.get("rephrased")]
        )
    headers = ["variant and commit", "triples", "steps", "s", "seen", "plain words", "both", "recited", "KL, named"]
    headers += ["written: plain words", "both", "unseen relation", "desk, rephrased"]
    return tabulate(shown, headers, tablefmt="github", missingval="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help="names of built-in variants, or YAML files")
    parser.add_argument("--subjects", type=int, default=8, help="that are trained")
    parser.add_argument("--relations", type=int, default=8, help="triples of each subject")
    parser.add_argument("--later", type=int, default=4, help="subjects whose triples are written afterwards")
    parser.add_argument("--unseen", type=int, default=0, help="relations of each kind that are not trained")
    parser.add_argument("--most", type=int, default=96, help="questions of a kind")
    parser.add_argument("--table", action="store_true", help="print the trials that are done")
    parser.add_argument("--training", default="rich")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text(encoding="utf-8"))))
        return
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
