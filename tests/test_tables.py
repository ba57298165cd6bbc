"""Facts from a table: read in every usual format, mended where that is safe, else refused with file and line."""

import json
from datetime import datetime

import pytest

from engram_bench import cli
from engram_bench.data import patterns
from engram_bench.data.tables import read
from engram_bench.errors import UsageError

ROWS = [("the wifi of Bo", "k7"), ("the code, old", 'say "12"'), ("the café's güey", "naïve")]
CSV = 'key,value\nthe wifi of Bo,k7\n"the code, old","say ""12"""\nthe café\'s güey,naïve\n'


def written(tmp_path, name, text, encoding="utf-8"):
    file = tmp_path / name
    file.write_bytes(text.encode(encoding))
    return file


def pairs(facts):
    return [(fact.key, fact.value) for fact in facts]


def refused(file):
    with pytest.raises(UsageError) as caught:
        read(file)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("name", "text", "encoding", "notes"),
    [
        ("a.csv", CSV, "utf-8", []),
        ("a.CSV", CSV.replace("\n", "\r\n"), "utf-8", []),
        ("a.csv", "\n" + CSV.replace("\n", "\n\n") + "\n", "utf-8", []),
        ("a.csv", CSV, "utf-8-sig", []),
        ("a.csv", CSV, "utf-16", ["read as UTF-16, by its byte-order mark"]),
        ("a.csv", CSV.replace("key,value", "Value, KEY").replace("k7", "k7"), "utf-8", []),
        ("a.csv", "key;value\nthe wifi of Bo;k7\nthe code, old;\"say \"\"12\"\"\"\nthe café's güey;naïve\n", "utf-8",
         ["cells are separated by ';'"]),
        ("a.tsv", "key\tvalue\nthe wifi of Bo\tk7\nthe code, old\t\"say \"\"12\"\"\"\nthe café's güey\tnaïve\n",
         "utf-8", []),
        ("a.csv", CSV.replace("\n", ",x\n").replace("key,value,x", "question,answer,note"), "utf-8", []),
        ("a.jsonl", "".join(json.dumps({"input": k, "output": v}) + "\n" for k, v in ROWS), "utf-8", []),
    ],
)  # fmt: skip
def test_a_table_is_read_in_every_usual_form(tmp_path, name, text, encoding, notes):
    facts, told = read(written(tmp_path, name, text, encoding))
    expected = [(v, k) for k, v in ROWS] if "Value, KEY" in text else ROWS
    assert pairs(facts) == expected
    assert told == notes


def test_each_fact_knows_its_line_also_after_a_cell_of_two_lines(tmp_path):
    facts, _ = read(written(tmp_path, "a.csv", 'key,value\nx,"one\ntwo"\n\ny,three\n'))
    assert [(fact.value, fact.place.rsplit(":", 1)[1]) for fact in facts] == [("one\ntwo", "2"), ("three", "5")]


def test_subject_relation_and_object_make_a_key(tmp_path):
    facts, _ = read(written(tmp_path, "a.csv", "subject,relation,object\nBo,wifi,k7\nBo,mayor,Ada\n"))
    assert pairs(facts) == [("the wifi of Bo", "k7"), ("the mayor of Bo", "Ada")]


def test_an_excel_sheet_is_read_as_it_shows(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    day = datetime(2026, 3, 1)
    rows = [["key", "value"], ["the wifi of Bo", "k7"], [None, None], ["the code", 12.0], ["the day", day]]
    for row in rows:
        book.active.append([*row, None])
    book.save(tmp_path / "a.xlsx")
    facts, _ = read(tmp_path / "a.xlsx")
    assert pairs(facts) == [("the wifi of Bo", "k7"), ("the code", "12"), ("the day", "2026-03-01")]
    assert facts[1].place.endswith("a.xlsx:4")


def test_a_fact_given_twice_is_kept_once_and_told(tmp_path):
    facts, notes = read(written(tmp_path, "a.csv", "key,value\nx,1\ny,2\nx  ,1\n"))
    assert pairs(facts) == [("x", "1"), ("y", "2")]
    assert notes == ["1 rows repeat a fact and were left out"]


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("key,value\nx,1\ny,2\nx,3\n", "utf-8", [":4: 'x' is '3' here and '1' in", "a.csv:2; keep one"]),
        ("key,value\nx,1,2\ny,\n", "utf-8", [":2: 3 cells, but 2 column names"]),
        ("key,value\nx,\ny,2\n", "utf-8", [":2: an empty cell"]),
        ("key,value\nx,\"1\ny,2\n", "utf-8", [":2: unexpected end of data; close each quote"]),
        ("name,age\nx,1\ny,2\n", "utf-8", [":1: columns are 'name', 'age'; name them key and value"]),
        ("key,value\nx,caf\xe9\n", "latin-1", [":2: not UTF-8 text; save the table as UTF-8"]),
        ("key,value\nx,1\ny,2\n", "utf-16-le", [":1: a zero byte; save the table as UTF-8"]),
        ("key,value\nx,1\n", "utf-8", ["1 facts; give 2 or more"]),
        ("", "utf-8", ["empty; write a row of column names"]),
        ("key,value\nx,a\x07b\ny,2\n", "utf-8", [":2: the value contains the control character U+0007"]),
        (f"key,value\n{'x' * 1001},1\ny,2\n", "utf-8", [":2: the key has 1001 characters, the limit is 1000"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, text, encoding, expected):
    (first, *_) = refused(written(tmp_path, "a.csv", text, encoding))
    assert first.startswith(str(tmp_path / "a.csv"))
    assert all(part in first for part in expected), first


def test_all_problems_of_a_table_are_told_together(tmp_path):
    lines = refused(
        written(tmp_path, "a.jsonl", '{"key": "x", "value": 1}\nx\n[1]\n{"key": "y"}\n{"key": "z", "value": [1]}\n')
    )
    assert [line.split(":")[1] for line in lines] == ["2", "3", "4", "5"]


def test_other_files_are_refused(tmp_path):
    assert "not a table; use one of .csv" in refused(written(tmp_path, "a.txt", CSV))[0]
    assert "No such file" in refused(tmp_path / "none.csv")[0]
    assert "save the table as CSV" in refused(written(tmp_path, "a.xlsx", "no zip"))[0]


def test_a_table_is_a_pattern_file(tmp_path, capsys):
    file = written(tmp_path, "front desk.csv", "key,value\n" + "".join(f"gate {n},code {n}\n" for n in range(1, 11)))
    (category,) = patterns.load(file).categories.values()
    assert (category.name, category.source, len(category.items)) == ("front_desk", "front desk.csv", 10)
    assert category.items[0].place == f"{file}:2"
    assert not category.split("heldout")
    assert len(category.split("seen")) == 10
    assert cli.main(["data", "--patterns", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "train" in capsys.readouterr().out
