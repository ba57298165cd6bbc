"""Exports patterns as JSONL for other trainers; ``mlx_lm.lora --data DIR`` reads the folder.

- ``train.jsonl``: every trained item in its trained phrasings, shuffled by seed.
- ``valid.jsonl``: every trained item in a rephrased phrasing that its own question in the suites does not use. No line
  repeats a question of the suites. But the questions use the same phrasings for other items, so a checkpoint chosen by
  this loss is tuned to them.
- ``test.jsonl``: the questions of the suites in the splits ``rephrased`` and ``heldout``.
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

Line = dict[str, Any]  # the fields of one of FORMATS, plus category, id and split


def export(folder: Path, data: PatternSet, form: str = "messages", seed: int = 0) -> dict[str, list[Line]]:
    """Write the three files and return their lines, by file name without suffix.

    Args:
        folder: created if missing; files with these names are replaced.
        data: the items to export.
        form: one of `FORMATS`.
        seed: seed for shuffling the training lines.

    Raises:
        UsageError: valid.jsonl would be empty, or the folder cannot be written.
    """
    files = lines(data, form, seed)
    if not files["valid"]:
        raise UsageError("--patterns: valid.jsonl would be empty; give phrasings.rephrased at least two entries")
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
    """The lines of each file, by file name without suffix."""
    files: dict[str, list[Line]] = {"train": [], "valid": [], "test": []}
    for category in data.categories.values():
        seen = category.split("seen")
        files["train"] += [
            _line(form, item, "seen", fill(phrasing, item.input))
            for item in seen
            for phrasing in category.trained_phrasings(item)
        ]
        for item, asked in zip(seen, category.validation_examples(), strict=False):  # may be empty
            files["valid"].append(_line(form, item, "rephrased", asked.prompt))
        files["test"] += [
            _question(form, category, item, s) for s in ("rephrased", "heldout") for item in category.split(s)
        ]
    random.Random(seed).shuffle(files["train"])
    return files


def _question(form: str, category: Category, item: Item, split: str) -> Line:
    return _line(form, item, split, category.question(item, split)[1])


def _line(form: str, item: Item, split: str, prompt: str) -> Line:
    if form == "messages":
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": item.output}]
        content: Line = {"messages": messages}
    else:
        content = {"prompt": prompt, "completion": item.output}
    return {**content, "category": item.category, "id": item.id, "split": split}


def counts(files: dict[str, list[Line]]) -> str:
    """A text table of the number of lines by category and file."""
    found = {name: Counter(row["category"] for row in rows) for name, rows in files.items()}
    rows = [[category, *(found[name][category] for name in files)] for category in sorted(found["test"])]
    rows.append(["all", *(len(rows) for rows in files.values())])
    return tabulate(rows, headers=["category", *files])
