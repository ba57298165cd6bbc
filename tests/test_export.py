"""``engram-bench data``: the written files, their byte-for-byte repeatability, and no leaks between them."""

import json

import pytest

from engram_bench import cli, shipped
from engram_bench.data import patterns
from engram_bench.options import chosen_items
from tests.conftest import PATTERNS

FILES = ("train.jsonl", "valid.jsonl", "test.jsonl")


def written(folder):
    return {name: [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()] for name in FILES}


def data(*args):
    return cli.main(["data", *map(str, args)])


def test_it_writes_what_a_run_trains_and_asks(tmp_path, capsys):
    assert data("--out", tmp_path / "a") == 0
    chosen = chosen_items(patterns.load(shipped.PATTERNS), "default")
    found = written(tmp_path / "a")
    prompts = {n: [row["messages"][0]["content"] for row in rows] for n, rows in found.items()}
    examples = {(e.prompt, e.answer) for e in chosen.training_examples()}
    assert {(r["messages"][0]["content"], r["messages"][1]["content"]) for r in found["train.jsonl"]} == examples
    asked = [
        c.question(i, s)[1] for c in chosen.categories.values() for s in ("rephrased", "heldout") for i in c.split(s)
    ]
    assert sorted(prompts["test.jsonl"]) == sorted(asked)
    assert len(found["valid.jsonl"]) == len(found["train.jsonl"]) / 3
    assert capsys.readouterr().out.split()[-4:] == ["all", *(str(len(rows)) for rows in found.values())]


def test_no_prompt_is_in_two_files_and_no_held_out_item_is_trained_or_validated_on(tmp_path):
    assert data("--out", tmp_path, "--profile", "full") == 0
    found = written(tmp_path)
    prompts = {n: {row["messages"][0]["content"] for row in rows} for n, rows in found.items()}
    assert not prompts["train.jsonl"] & prompts["valid.jsonl"]
    assert not prompts["test.jsonl"] & (prompts["train.jsonl"] | prompts["valid.jsonl"])
    heldout = {row["id"] for row in found["test.jsonl"] if row["split"] == "heldout"}
    assert len(heldout) > 700
    assert not heldout & {row["id"] for name in FILES[:2] for row in found[name]}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert data("--out", tmp_path / folder, "--seed", seed) == 0
    a, b, c = ([(tmp_path / f / name).read_bytes() for name in FILES] for f in "abc")
    assert a == b
    assert a[0] != c[0]


def test_completions_of_a_plain_file_of_ones_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(PATTERNS, encoding="utf-8")
    assert data("--out", tmp_path / "out", "--patterns", own, "--format", "completions") == 0
    found = written(tmp_path / "out")
    assert [len(rows) for rows in found.values()] == [24, 8, 10]
    assert set(found["train.jsonl"][0]) == {"prompt", "completion", "category", "id", "split"}
    assert {row["category"] for rows in found.values() for row in rows} == {"colours"}


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--format", "parquet"], "--format: 'parquet' is not one of messages, completions"),
        (["--profile", "huge"], "--profile: 'huge'"),
        (["--seed", "-1"], "--seed: '-1'"),
        (["--patterns", "no/such.yaml"], "no/such.yaml: No such file"),
        (["--out", "/dev/null/x"], "--out: /dev/null/x: Not a directory"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(tmp_path, capsys, args, reason):
    assert data("--out", tmp_path, *args) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert reason in told[0]


def test_one_untrained_phrasing_leaves_nothing_to_validate_on(tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(PATTERNS + "phrasings: {trained: ['{input}'], rephrased: ['Say {input}']}\n", encoding="utf-8")
    assert data("--out", tmp_path, "--patterns", own) == 2
    assert "valid.jsonl would be empty" in capsys.readouterr().err
