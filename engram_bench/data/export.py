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

from engram_bench.data.items import Category, Item, PatternSet, fill
from engram_bench.errors import UsageError

FORMATS = ("messages", "completions")

Line = dict[str, Any]  # the fields of FORMATS, and category, id, split


def export(folder: Path, data: PatternSet, form: str = "messages", seed: int = 0) -> dict[str, list[Line]]:
    """Write the three files; returns their lines by file name.

    Args:
        folder: made where it is missing; files of these names in it are replaced.
        data: the items, as many as a run would have.
        form: one of `FORMATS`.
        seed: of the order of the training lines.

    Raises:
        UsageError: there would be no line to validate on, or the folder cannot be written.
    """
    files = lines(data, form, seed)
    if not files["valid"]:
        raise UsageError("--patterns: valid.jsonl would be empty; give phrasings.rephrased two entries or more")
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
