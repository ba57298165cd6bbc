"""Patterns as JSONL for other trainers: ``mlx_lm.lora --data DIR`` takes the folder as it is.

- ``train.jsonl``: every trained item in its trained phrasings, in an order drawn by seed.
- ``valid.jsonl``: every trained item in a never-trained phrasing, but not the one the test asks it in. No line is a
  question of the test; that asks other items in these phrasings, so a checkpoint chosen by its loss is chosen for them.
- ``test.jsonl``: what the suites ask in the splits ``rephrased`` and ``heldout``.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

from tabulate import tabulate

from engram_bench.data import patterns
from engram_bench.data.items import Category, Item, PatternSet, fill
from engram_bench.errors import UsageError
from engram_bench.options import PROFILES, ROOT, chosen_items

FORMATS = ("messages", "completions")

Line = dict[str, Any]  # the fields of FORMATS, and category, id, split


def export(
    out: str, source: str | None, form: str = "messages", profile: str = "default", seed: str = "0"
) -> dict[str, list[Line]]:
    """Write the three files; returns their lines by file name.

    Args:
        out: folder, made where it is missing; files of these names in it are replaced.
        source: a pattern file or a folder of them; None: the shipped ones.
        form: one of `FORMATS`.
        profile: how many items, as in a run.
        seed: of the profile's choice and of the order of the training lines.

    Raises:
        UsageError: an option that makes no sense, bad pattern files, or a folder that cannot be written.
    """
    for option, value, choices in (("format", form, FORMATS), ("profile", profile, tuple(PROFILES))):
        if value not in choices:
            raise UsageError(f"--{option}: {value!r} is not one of {', '.join(choices)}")
    if not seed.isdecimal():
        raise UsageError(f"--seed: {seed!r} is not a whole number of 0 or more")
    loaded = patterns.load(Path(source).expanduser() if source else ROOT / "patterns")
    files = lines(chosen_items(loaded, profile, int(seed)), form, int(seed))
    if not files["valid"]:
        raise UsageError(f"{source}: valid.jsonl would be empty; give phrasings.rephrased two entries or more")
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            new = folder / f"{name}.jsonl.new"
            new.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            os.replace(new, folder / f"{name}.jsonl")
    except OSError as error:
        raise UsageError(f"--out: {folder}: {error.strerror}; choose another folder") from error
    return files


def lines(data: PatternSet, form: str, seed: int) -> dict[str, list[Line]]:
    """The lines of each file, by its name."""
    files: dict[str, list[Line]] = {"train": [], "valid": [], "test": []}
    for category in data.categories.values():
        seen = category.split("seen")
        files["train"] += [
            _line(form, item, "seen", fill(phrasing, item.input))
            for item in seen
            for phrasing in category.trained_phrasings(item)
        ]
        for item, asked in zip(seen, category.validation_examples(), strict=False):  # there may be none
            files["valid"].append(_line(form, item, "rephrased", asked.prompt))
        files["test"] += [
            _asked(form, category, item, s) for s in ("rephrased", "heldout") for item in category.split(s)
        ]
    random.Random(seed).shuffle(files["train"])
    return files


def _asked(form: str, category: Category, item: Item, split: str) -> Line:
    return _line(form, item, split, category.question(item, split)[1])


def _line(form: str, item: Item, split: str, prompt: str) -> Line:
    if form == "messages":
        told = [{"role": "user", "content": prompt}, {"role": "assistant", "content": item.output}]
        content: Line = {"messages": told}
    else:
        content = {"prompt": prompt, "completion": item.output}
    return {**content, "category": item.category, "id": item.id, "split": split}


def counts(files: dict[str, list[Line]]) -> str:
    """A table of lines by category and file."""
    found = {name: Counter(row["category"] for row in rows) for name, rows in files.items()}
    rows = [[category, *(found[name][category] for name in files)] for category in sorted(found["test"])]
    rows.append(["all", *(len(rows) for rows in files.values())])
    return tabulate(rows, headers=["category", *files])
