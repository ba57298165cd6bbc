"""The categories as tasks of lm-evaluation-harness, which ``lm_eval --include_path DIR --tasks engram`` runs.

A task for each category and each of its splits `seen`, `rephrased` and `heldout`: ``engram_facts_seen.yaml`` and,
beside it, the data, ``engram_facts_seen.jsonl``. Groups run several by one name: ``engram_seen`` all categories in a
split, ``engram`` all tasks. What the tasks share is in ``_common_yaml``.

- A prompt is followed by the text that this harness puts after the prompts of a model without a chat template. So a
  base model is asked as in the suites. A memory that looks for a trained key acts after the line break, in raw text and
  in the chat template, where the text is a part of the user's turn.
- The score is `metrics.exact`: the whole greedy answer up to a line break, apart from outer white space.
- lm-eval takes a relative path for one below the working directory. So each task has its data file's absolute path.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from engram_bench.data.items import PatternSet
from engram_bench.errors import UsageError

EXAMPLE = Path(__file__).parent / "lm_eval_example"
EXAMPLE_TASK = "engram_bench_example"
SPLITS = ("seen", "rephrased", "heldout")
OUTER_SPACE = [r"^\s+", r"\s+$"]
DATE = re.compile(r"\s*\d{4}-\d\d-\d\d")
COMMON: dict[str, Any] = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}\nAnswer:\n",
    "doc_to_target": "answer",  # the field itself: lm-eval would parse a rendered "[1, 2]" as a list
    "target_delimiter": "",
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "regexes_to_ignore": OUTER_SPACE,
        }
    ],
    "metadata": {"version": 1.0},
}

Line = dict[str, Any]


def lines(data: PatternSet) -> dict[str, list[Line]]:
    """The questions of the suites, by split; each with the fields prompt, answer, category, id and split."""
    return {
        split: [
            {
                "prompt": category.question(item, split)[1],
                "answer": item.output.strip(),
                "category": category.name,
                "id": item.id,
                "split": split,
            }
            for category in data.categories.values()
            for item in category.split(split)
        ]
        for split in SPLITS
    }


def tasks(lines: dict[str, list[Line]]) -> dict[str, list[Line]]:
    """The lines of each task, by its name; none is empty.

    Raises:
        UsageError: names of two categories differ in case alone, which not every file system tells apart.
    """
    found: dict[str, list[Line]] = {}
    for split, rows in lines.items():
        for row in rows:
            found.setdefault(f"engram_{row['category']}_{split}", []).append(row)
    alike = Counter(name.casefold() for name in found)
    if twice := next((name for name in found if alike[name.casefold()] > 1), None):
        category = twice.removeprefix("engram_").rpartition("_")[0]
        raise UsageError(f"--patterns: another category is named {category!r} up to case; rename one")
    return {name: _kept_as_text(rows) for name, rows in found.items()}


def configs(tasks: dict[str, list[Line]], folder: Path) -> dict[str, dict[str, Any]]:
    """The content of each YAML file by its name, for data files in `folder`, an absolute path."""
    found: dict[str, dict[str, Any]] = {"_common_yaml": COMMON}
    for name, rows in tasks.items():
        answers = [row["answer"] for row in rows]
        found[f"{name}.yaml"] = {
            "include": "_common_yaml",
            "task": name,
            "dataset_kwargs": _data_files(folder / f"{name}.jsonl"),
            "generation_kwargs": {
                "until": [] if any("\n" in answer for answer in answers) else ["\n"],
                "do_sample": False,
                # A token for each byte and for a space before them, and one more, so that no cut answer is right.
                "max_gen_toks": 2 + max(len(answer.encode()) for answer in answers),
            },
        }
    groups = {f"engram_{split}": [name for name in tasks if name.endswith(f"_{split}")] for split in SPLITS}
    groups = {name: members for name, members in groups.items() if members}
    for name, members in {**groups, "engram": list(groups)}.items():
        mean = {"metric": "exact_match", "aggregation": "mean", "weight_by_size": True}
        found[f"{name}.yaml"] = {"group": name, "task": members, "aggregate_metric_list": [mean]}
    return found


@contextmanager
def example() -> Iterator[Path]:
    """A folder for ``--include-path`` with the task `EXAMPLE_TASK`, while the context lasts."""
    config = yaml.safe_load((EXAMPLE / f"{EXAMPLE_TASK}.yaml").read_text(encoding="utf-8"))
    config["dataset_kwargs"] = _data_files(EXAMPLE / config["dataset_kwargs"]["data_files"]["test"])
    with TemporaryDirectory() as folder:
        (Path(folder) / f"{EXAMPLE_TASK}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        yield Path(folder)


def _data_files(file: Path) -> dict[str, Any]:
    return {"data_files": {"test": glob.escape(str(file))}}  # lm-eval's loader takes patterns


def _kept_as_text(rows: Sequence[Line]) -> list[Line]:
    """The rows, with a space after the texts of a column of dates, which the loader of JSON would make times of."""
    columns = [name for name in ("prompt", "answer") if all(DATE.match(row[name]) for row in rows)]
    return [{**row, **{name: f"{row[name]} " for name in columns}} for row in rows]
