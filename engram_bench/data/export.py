"""Exports patterns as JSONL for other trainers, and as tasks of lm-evaluation-harness, see `lm_eval_tasks`.

``mlx_lm.lora --data DIR`` reads the folder, which has:

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

import yaml
from tabulate import tabulate

from engram_bench.data import lm_eval_tasks
from engram_bench.data.items import Category, Item, PatternSet, fill
from engram_bench.errors import UsageError

LM_EVAL = "lm-eval"
FORMATS = ("messages", "completions", LM_EVAL)

Line = dict[str, Any]  # the fields of one of FORMATS, plus category, id and split


def export(folder: Path, data: PatternSet, form: str = "messages", seed: int = 0) -> dict[str, list[Line]]:
    """Write the files and return their lines: by file name without suffix, or for lm-eval by split.

    Args:
        folder: created if missing; files with the names of new ones are replaced.
        data: the items to export.
        form: one of `FORMATS`.
        seed: seed for shuffling the training lines.

    Raises:
        UsageError: valid.jsonl would be empty, two categories have one name up to case, or the folder cannot be
            written.
    """
    if form == LM_EVAL:
        files = lm_eval_tasks.lines(data)
        tasks = lm_eval_tasks.tasks(files)
        texts = {f"{name}.jsonl": _jsonl(rows) for name, rows in tasks.items()}
        for name, config in lm_eval_tasks.configs(tasks, folder.resolve()).items():
            texts[name] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    else:
        files = lines(data, form, seed)
        if not files["valid"]:
            raise UsageError("--patterns: valid.jsonl would be empty; give phrasings.rephrased at least two entries")
        texts = {f"{name}.jsonl": _jsonl(rows) for name, rows in files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            new = folder / f"{name}.new"
            new.write_bytes(text.encode())
            os.replace(new, folder / name)
    except OSError as error:
        raise UsageError(f"--out: {folder}: {error.strerror}; choose another folder") from error
    return files


def _jsonl(rows: list[Line]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


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
    categories = sorted(set().union(*found.values()))
    rows = [[category, *(found[name][category] for name in files)] for category in categories]
    rows.append(["all", *(len(rows) for rows in files.values())])
    return tabulate(rows, headers=["category", *files])
