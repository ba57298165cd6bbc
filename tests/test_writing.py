"""Facts written into a trained memory: recalled at once, earlier facts untouched, forgotten without a trace."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engram_bench import cli, variants
from engram_bench.backends.torch import writing as torch_writing
from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.backends.torch.writing import WritableMemory
from engram_bench.errors import UsageError
from engram_bench.memory.addresses import fact_pairs
from tests.conftest import ENGRAM, in_float32, make_tokenizer, quiet

FACTS = {"NEW:uvw": "silver", "the owner of the boat": "Ada", "NEW:uvx": "copper", "NEW:w": "tin and lead"}


@pytest.fixture(scope="module")
def model(checkpoint):
    return in_float32(checkpoint)


@pytest.fixture(scope="module")
def saved(model, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    model.train(variants.parse(ENGRAM, "test"), examples, 0, folder, quiet)
    return folder


@pytest.fixture
def memory(model, saved):
    return model.load_writable(saved)


def ask(model, memory, texts):
    with model.attached(memory and memory.adapter):
        return [model.encoder.decode(ids) for ids in model.generate([model.encoder.prompt(t) for t in texts], 12)]


def state(memory):
    return {layer: (m.row_ids.copy(), m.table.detach().clone()) for layer, m in memory.adapter.layers.items()}


def test_facts_are_recalled_in_other_words_and_what_was_known_stays(model, memory, examples):
    trained = [example.prompt for example in examples]
    before = ask(model, memory, trained)
    for key, value in FACTS.items():
        written = memory.write(key, value)
        assert written.rows > 0
    assert ask(model, memory, FACTS) == list(FACTS.values())
    assert ask(model, memory, [f"Please look up {key} for me" for key in FACTS]) == list(FACTS.values())
    assert ask(model, memory, trained) == before


def test_writing_moves_no_row_that_was_there(model, memory):
    before = state(memory)
    memory.write("NEW:uvw", "silver")
    memory.write("NEW:uvx", "copper")
    for layer, (rows, table) in before.items():
        now = memory.adapter.layers[layer]
        assert torch.equal(now.table[1 + np.searchsorted(now.row_ids, rows)], table[1:])
        assert not now.table[0].any()
        assert (len(now.row_ids) > len(rows)) == (layer == max(before)), "only the last layer has new rows"


def test_forgetting_leaves_the_others_and_in_the_end_no_trace(model, memory):
    before, keys = state(memory), memory.adapter.addresses.keys.to_array()
    for key, value in FACTS.items():
        memory.write(key, value)
    memory.forget("NEW:uvw")
    rest = {key: value for key, value in FACTS.items() if key != "NEW:uvw"}
    assert ask(model, memory, rest) == list(rest.values())
    assert ask(model, memory, ["NEW:uvw"]) != ["silver"]
    for key in rest:
        memory.forget(key)
    assert np.array_equal(memory.adapter.addresses.keys.to_array(), keys)
    for layer, (rows, table) in before.items():
        assert np.array_equal(memory.adapter.layers[layer].row_ids, rows)
        assert torch.equal(memory.adapter.layers[layer].table, table)


def test_forgetting_leaves_the_rows_that_another_fact_reads_too(model, memory):
    for key in ("NEW:uvw", "NEW:uvx"):
        memory.write(key, FACTS[key])
    rest = fact_pairs("NEW:uvx", FACTS["NEW:uvx"], model.encoder)
    last = memory.adapter.addresses.last
    needed = memory.adapter.addresses.touched(rest)[last]
    memory.forget("NEW:uvw")
    assert np.isin(needed, memory.adapter.layers[last].row_ids).all()


def test_written_facts_are_saved_and_can_be_forgotten_after_loading(model, memory, tmp_path):
    memory.write("NEW:uvw", "silver")
    memory.save(tmp_path)
    again = model.load_writable(tmp_path)
    assert ask(model, again, ["NEW:uvw"]) == ["silver"]
    again.forget("NEW:uvw")
    assert ask(model, again, ["NEW:uvw"]) == ask(model, None, ["NEW:uvw"])


@pytest.mark.parametrize("key", ["KEY:abc", "NEW:uvw"])
def test_a_known_key_is_refused(model, memory, key):
    memory.write("NEW:uvw", "silver")
    before = state(memory)
    with pytest.raises(UsageError, match="already known"):
        memory.write(key, "another")
    assert all(torch.equal(table, memory.adapter.layers[layer].table) for layer, (_, table) in before.items())


def test_a_blank_key_and_a_memory_that_reads_all_of_a_text_are_refused(model, memory, examples):
    with pytest.raises(UsageError, match="blank"):
        memory.write(" \n", "silver")
    variant = variants.parse(ENGRAM + "span: text\n", "test")
    pairs = [model.encoder.pair(example) for example in examples]
    of_text = WritableMemory(model, EngramAdapter.create(model.model, variant.config, model.encoder, pairs))
    with pytest.raises(UsageError, match="span: text"):
        of_text.write("NEW:uvw", "silver")


def test_a_memory_of_another_vocabulary_is_refused(checkpoint, saved, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    make_tokenizer(size=300).save_pretrained(folder)
    with pytest.raises(UsageError, match="another vocabulary"):
        in_float32(folder).load_writable(saved)


def test_an_input_within_a_longer_word_cannot_be_trained(model, examples, tmp_path):
    text = f"{examples[0].prompt}s"
    end = len(examples[0].prompt)
    joined = replace(examples[0], prompt=text, key=(end - 3, end))
    with pytest.raises(UsageError, match="longer word"):
        model.train(variants.parse(ENGRAM, "test"), [joined], 0, tmp_path, quiet)


def test_what_was_not_written_cannot_be_forgotten(model, memory):
    with pytest.raises(UsageError, match="was not written"):
        memory.forget("KEY:abc")


def test_a_process_killed_while_it_saves_leaves_the_old_memory_or_the_new(model, saved, tmp_path, monkeypatch):
    folder = shutil.copytree(saved, tmp_path / "mine")
    memory, replaced = model.load_writable(folder), Path.replace
    memory.write("NEW:uvw", "silver")
    for survivors, facts in ((0, []), (1, ["NEW:uvw"])):
        moves = iter(range(survivors))

        def replace(self, target, moves=moves):
            if next(moves, None) is None:
                raise KeyboardInterrupt
            return replaced(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            memory.save(folder)
        monkeypatch.undo()
        assert list(model.load_writable(folder).facts) == facts


def test_files_have_the_mode_that_the_umask_gives(model, saved, tmp_path):
    before = os.umask(0o026)
    try:
        model.load_writable(saved).save(tmp_path)
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {"0o640"}


def test_two_processes_that_write_at_once_both_store_their_fact(model, saved, checkpoint, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "mine")
    code = "import sys; from engram_bench.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--model", str(checkpoint), "--backend", "cpu"]
    writers = [
        subprocess.Popen([sys.executable, "-c", code, "write", str(folder), key, FACTS[key], *options])
        for key in ("NEW:uvw", "NEW:uvx")
    ]
    assert {writer.wait() for writer in writers} <= {0, 1}, "1: stored, though not certain"
    assert set(model.load_writable(folder).facts) == {"NEW:uvw", "NEW:uvx"}


def test_a_folder_without_a_memory_is_refused_before_a_model_is_fetched(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("engram_bench.store.models.resolve", lambda name: pytest.fail("a model was asked for"))
    assert cli.main(["write", str(tmp_path), "NEW:uvw", "silver", "--backend", "cpu"]) == 2
    assert "no memory here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("write", " ", "x"), "the key is blank"),
        (("write", "\u0301", "x"), "the key is blank"),
        (("write", "N:z", " "), "the value is blank"),
        (("write", "key:ABC", "x"), "already known"),
        (("forget", "N:z"), "not written"),
    ],
)
def test_what_is_written_is_checked_before_a_model_is_fetched(command, problem, saved, capsys, monkeypatch):
    monkeypatch.setattr("engram_bench.store.models.resolve", lambda name: pytest.fail("a model was asked for"))
    name, *args = command
    assert cli.main([name, str(saved), *args, "--backend", "cpu"]) == 2
    assert problem in capsys.readouterr().err


def test_the_commands_write_and_forget(model, saved, checkpoint, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    options = ["--model", str(checkpoint), "--backend", "cpu"]
    assert cli.main(["write", str(folder), "NEW:uvw", "silver", *options]) == 0
    assert "NEW:uvw -> silver" in capsys.readouterr().out
    assert cli.main(["write", str(folder), "NEW:uvw", "gold", *options]) == 2
    assert "already known" in capsys.readouterr().err
    monkeypatch.setattr(torch_writing, "MOST_STEPS", 0)
    assert cli.main(["write", str(folder), "NEW:uvy", "bronze", *options]) == 1
    assert "the model answers something else" in capsys.readouterr().err
    assert cli.main(["forget", str(folder), "NEW:uvy", *options]) == 0
    assert "1 facts are left" in capsys.readouterr().out
    assert cli.main(["forget", str(folder), "NEW:uvw", *options]) == 0
    assert "0 facts are left" in capsys.readouterr().out
    assert cli.main(["forget", str(tmp_path), "NEW:uvw", *options]) == 2
    assert "no memory here" in capsys.readouterr().err
    (folder / "training.json").write_text("{}")
    assert cli.main(["write", str(folder), "NEW:uvx", "gold", *options]) == 2
    assert "belongs to the cache" in capsys.readouterr().err
