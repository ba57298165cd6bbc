"""Somebody's own facts, from a table to a scorecard and adapters: what `engram-bench facts` does."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from engram_bench import backends
from engram_bench.data import patterns, tables
from engram_bench.data.items import REPHRASED, TRAINED
from engram_bench.errors import UsageError
from engram_bench.options import Settings, check_writable, settle
from engram_bench.run import estimate
from engram_bench.run.bench import Bench
from engram_bench.run.command_line import suites
from engram_bench.run.progress import Reporter
from engram_bench.store import adapters

PATTERNS, RUNS = "patterns.yaml", "runs"
KEY = "{key}"
SAME = ("backend", "model")  # options that an adapter is asked with, too
USE = {  # with the model and its tokenizer by transformers
    **dict.fromkeys(("lora", "peft"), "peft.PeftModel.from_pretrained(model, {})"),
    "engram": "engram_bench.pretrained.EngramMemory.from_pretrained({}, model, tokenizer)",
}


def learn(file: Path, out: Path, say: Sequence[str], options: dict[str, Any]) -> int:
    """Train variants on the facts of a file, ask them, and leave report and adapters in a folder.

    Args:
        file: a table of facts, or a pattern file.
        out: an empty or new folder, or that of the same facts before. It gets `PATTERNS`, the runs in
            `RUNS`, and an adapter's folder for each variant.
        say: how people ask, as sentences with `KEY`; trained besides the built-in ones.
        options: further options of the run by `Option.dest`.

    Returns:
        pytest's exit code.

    Raises:
        UsageError: the file or an option is wrong.
    """
    check_writable("--out", out)
    written, notes = pattern_file(file, say)
    begun = (out / PATTERNS).is_file() and (out / PATTERNS).read_text("utf-8") == written  # by the same command before
    others = {file.name for file in out.iterdir()} - {PATTERNS}  # the patterns alone: their facts had a fault
    if others and not begun:
        raise UsageError(f"--out: {out}: not empty; choose another folder")
    for note in notes:
        print(f"{file}: {note}", file=sys.stderr)
    (out / PATTERNS).write_text(written, encoding="utf-8")
    places = {"engram_patterns": str(out / PATTERNS), "engram_report": str(out / RUNS)}
    given = {"engram_profile": "facts", **options, **places}
    settings = settle(given, lambda _: "")
    print(announced(settings), file=sys.stderr)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value]
    # -c: the ini file of the current folder says nothing about this run
    done = subprocess.run(suites([*flags, "-c", os.devnull, "-q", "--no-header", "--tb=short"]), check=False).returncode
    if done == 0:
        same = [f"--{name} {shlex.quote(options[key])}" for name in SAME if (key := f"engram_{name}") in options]
        _leave_adapters(settings, out, " ".join(["", *same]))
    return done


def pattern_file(file: Path, say: Sequence[str]) -> tuple[str, list[str]]:
    """The facts of a file as a pattern file in YAML, which trains all of them; and notes on what was mended."""
    for sentence in say:
        if sentence.count(KEY) != 1:
            raise UsageError(f"--say: {sentence!r} must contain {KEY} exactly once")
    if file.is_dir():
        raise UsageError(f"{file}: a folder; name one file")
    if file.suffix.lower() not in tables.SUFFIXES:
        patterns.load(file)
        if say:
            raise UsageError("--say: a pattern file has its own sentences; add it to its phrasings")
        return file.read_text("utf-8"), []
    facts, notes = tables.read(file)
    ((name, category),) = patterns.load(file).categories.items()
    said = [sentence.replace(KEY, "{input}") for sentence in say]
    content = {
        "name": name,
        "source": category.source,
        "heldout": "none",
        "phrasings": {"trained": [*TRAINED, *said], "rephrased": list(REPHRASED)},
        "examples": [{"input": fact.key, "output": fact.value} for fact in facts],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), notes


def announced(settings: Settings) -> str:
    """What will be done, and on a CPU about how long it takes."""
    count = sum(len(category.items) for category in settings.patterns.categories.values())
    own = [variant for variant in settings.variants if not variant.adapter_of]
    kinds = [estimate.kind_of(variant) for variant in own]
    text = f"{count} facts; variants {', '.join(variant.name for variant in settings.variants)}"
    target = backends.find(settings.backend, settings.lora_engine)
    if (target.framework, target.device, settings.model) != ("torch", "cpu", "bundled"):
        return text
    from engram_bench.backends.torch.device import matrix_rate

    rate = matrix_rate(target.device, target.dtype)
    seconds = estimate.own_facts(count, kinds * len(settings.seeds)) * estimate.RATE / rate
    return f"{text}; about {estimate.words(seconds)} (products in {target.dtype} at {rate:.0f} GFLOP/s)"


def _leave_adapters(settings: Settings, out: Path, same: str) -> None:
    """Copy each trained adapter to a folder of its variant's name, unless it is there, and print how to use it.

    An adapter that is there may hold facts that were written into it. `same`: options that `ask` needs, too.
    """
    bench = Bench(settings, Reporter(None))
    item, _ = settings.patterns.first_seen()
    for variant in settings.variants:
        if variant.config and not variant.control:
            folder = out / variant.name
            if not (folder / adapters.VARIANT).exists():
                folder.mkdir(exist_ok=True)
                adapters.copy(bench.trained(variant.name, settings.seeds[0]).folder, folder, variant)
            print(f"engram-bench ask {shlex.quote(str(folder))} {shlex.quote(item.input)} --baseline{same}")
            if use := USE.get(variant.kind):
                print(f"  in Python: {use.format(repr(str(folder)))}")
