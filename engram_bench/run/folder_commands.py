"""Commands on the folder of a trained adapter: ask it, list it, write facts into it, forget them.

Each takes the parsed arguments of `engram-bench COMMAND --help` and returns the exit code; None is success.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from engram_bench import backends, metrics
from engram_bench.backends.base import Adapter, Backend, Writable
from engram_bench.data import tables
from engram_bench.errors import UsageError
from engram_bench.memory import addresses, weights
from engram_bench.memory.hearing import KIND, Facts
from engram_bench.memory.keys import KeyIndex
from engram_bench.options import integer
from engram_bench.run import asking
from engram_bench.store import adapters, models
from engram_bench.variants.configs import EngramConfig, HearingConfig


def ask(args: argparse.Namespace) -> None:
    if (args.prompt is None) == (args.prompts is None):
        raise UsageError("give either a prompt or --prompts FILE")
    if not (most := integer("--max-tokens", args.max_tokens)):
        raise UsageError("--max-tokens: 0 leaves no answer; use 1 or more")
    prompts = asking.read(args.prompts) if args.prompts is not None else [args.prompt]
    variant, target = adapters.variant_of(args.adapter), backends.find(args.backend)
    model = target.load(models.resolve(args.model).folder)
    shown: dict[str, Adapter | None] = {"baseline": None} if args.baseline else {}
    shown[variant.name] = model.load_adapter(variant, args.adapter)
    if args.prompts is not None:
        for line in asking.lines(model, shown, prompts, most):
            print(line)
        return
    for name, adapter in shown.items():
        if args.baseline:
            print(f"{name}: ", end="")
        for piece in asking.streamed(model, adapter, args.prompt, most):
            print(piece, end="", flush=True)
        print()


def list_facts(args: argparse.Namespace) -> None:
    variant = adapters.variant_of(args.adapter)
    print(f"{variant.name}: {variant.about}")
    if isinstance(variant.config, EngramConfig) and variant.config.keyed:
        _, keys, facts = _known(args.adapter)
        print(f"{len(keys.tokens)} keys, {len(facts)} of them written")
        for key, value in facts.items():
            print(f"{key} -> {value}")
    if isinstance(variant.config, HearingConfig):
        heard = _heard(args.adapter)
        print(f"{len(heard.known())} facts at {len(heard.names)} names, {len(heard.written)} of them written")
        for fact in heard.written:
            print(f"{fact.key} -> {fact.value}  (heard at: {', '.join(fact.names)})")


def write(args: argparse.Namespace) -> int:
    new = _facts_to_write(args)
    _check_own(args.adapter)
    known = _written(args.adapter)
    if args.table is not None:
        for key in [
            key for key, fact in new.items() if known.get(key) == fact.value
        ]:  # by an earlier run on this table
            print(f"{key} is known already")
            del new[key]
    _check_new(args.adapter, new, named=args.name is not None)
    unlearned = 0
    with _changing(args) as (model, memory):
        for key, fact in new.items():
            written = memory.write(key, fact.value, fact.subject)
            with model.attached(memory.adapter):
                longest = len(model.encoder.answer(fact.value))
                answer = model.encoder.decode(model.generate([model.encoder.prompt(key)], longest)[0])
            memory.save(args.adapter)
            print(f"{key} -> {answer}  ({written.seconds:.2f} s, {written.rows} rows, {len(memory.facts)} facts)")
            unlearned += not metrics.exact(answer, fact.value)
    if not unlearned:
        return 0
    which = "" if len(new) == 1 else f"{unlearned} of {len(new)} facts: "
    problem = "stored, but the model answers something else; forget the fact, then reword its key or value"
    print(f"engram-bench: {which}{problem}", file=sys.stderr)
    return 1


def forget(args: argparse.Namespace) -> None:
    _check_own(args.adapter)
    addresses.check_written(args.key, _written(args.adapter))
    with _changing(args) as (_, memory):
        memory.forget(args.key)
        memory.save(args.adapter)
    print(f"{args.key} is forgotten; {len(memory.facts)} facts are left")


def _facts_to_write(args: argparse.Namespace) -> dict[str, tables.Fact]:
    if args.table is not None and args.key is None:
        facts, notes = tables.read(args.table, fewest=1)
        for note in notes:
            print(f"{args.table}: {note}", file=sys.stderr)
        return {fact.key: fact for fact in facts}
    if args.table is not None or args.value is None:
        raise UsageError("give either a key and a value, or --from FILE")
    return {args.key: tables.Fact(args.key, args.value, "", args.name or "")}


def _check_new(folder: Path, new: Mapping[str, tables.Fact], *, named: bool) -> None:
    """Check facts before the model is loaded. Raises UsageError if the memory cannot take one of them."""
    hearing = weights.kind_of(folder) == KIND
    heard, known = (_heard(folder), None) if hearing else (None, _known(folder))
    if named and not hearing:
        raise UsageError("--name: only a hearing memory hears names; leave it out")
    for key, fact in new.items():
        if heard:
            heard.check_new(key, fact.value, fact.subject)
        elif known:
            addresses.check_new(key, *known)
            addresses.check_value(fact.value)
    addresses.check_apart(new)


def _check_own(folder: Path) -> None:
    if (folder / adapters.TRAINING).exists():
        copied = "engram-bench train engram-keyed --out DIR"
        raise UsageError(f"{folder}: this adapter belongs to the cache; make a copy with {copied}")


def _known(folder: Path) -> tuple[EngramConfig, KeyIndex, dict[str, str]]:
    """A memory's settings, its keys and the facts written into it, read without a model."""
    config = weights.engram_config(folder)
    return config, *addresses.known(weights.load(folder, "engram", asdict(config)))


def _heard(folder: Path) -> Facts:
    """What a hearing memory knows, read without a model."""
    return Facts.from_array(weights.load(folder, KIND, asdict(weights.hearing_config(folder)))["facts"])


def _written(folder: Path) -> dict[str, str]:
    """The facts written into a memory, by key."""
    if weights.kind_of(folder) == KIND:
        return {fact.key: fact.value for fact in _heard(folder).written}
    return _known(folder)[2]


@contextmanager
def _changing(args: argparse.Namespace) -> Iterator[tuple[Backend, Writable]]:
    """The model and the memory to change. No other command changes this memory meanwhile."""
    target = backends.find(args.backend)
    if target.framework != "torch" and weights.kind_of(args.adapter) != KIND:
        raise UsageError("--backend: only torch writes facts (cpu, cuda, mps); MLX can then read the memory")
    model = target.load(models.resolve(args.model).folder)
    with weights.locked(args.adapter):
        yield model, model.load_writable(args.adapter)


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "ask": ask,
    "list": list_facts,
    "write": write,
    "forget": forget,
}
