"""A trained adapter asked from the command line: the text of `generate`, for any kind of adapter."""

import io
import json
from dataclasses import replace

import pytest

from engram_bench import cli, variants
from engram_bench.run.asking import lines, streamed
from engram_bench.store import adapters
from tests.conftest import ENGRAM, LORA, in_float32, needs_torch, quiet

pytestmark = needs_torch
KINDS = {"tiny-lora": LORA, "tiny-engram": ENGRAM}


@pytest.fixture(scope="module")
def model(checkpoint):
    return in_float32(checkpoint)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, model, examples, tmp_path_factory):
    """What ``engram-bench train --out`` leaves."""
    variant, trained, out = variants.parse(KINDS[request.param], "test"), *map(tmp_path_factory.mktemp, "ab")
    model.train(variant, examples, 0, trained, quiet)
    adapters.copy(trained, out, variant)
    return out


def command(checkpoint, *args):
    return cli.main([*map(str, args), "--backend", "cpu", "--model", str(checkpoint)])


@pytest.fixture(scope="module")
def answers(model, folder, examples):
    """The model's answers with the adapter to the examples' prompts."""
    with model.attached(model.load_adapter(adapters.variant_of(folder), folder)):
        found = model.generate([model.encoder.prompt(example.prompt) for example in examples], 12)
    return {e.prompt: model.encoder.decode(ids) for e, ids in zip(examples, found, strict=True)}


def test_a_streamed_answer_is_the_generated_one(model, folder, answers):
    adapter = model.load_adapter(adapters.variant_of(folder), folder)
    for prompt, answer in list(answers.items())[:3]:
        assert "".join(streamed(model, adapter, prompt, 12)) == answer


def test_a_character_of_several_tokens_comes_whole(model):
    class Typing:
        """The model, with an answer that it would have to be trained to give."""

        encoder, attached = model.encoder, model.attached

        def stream(self, prompt, most):
            yield from model.encoder.tokenizer.encode("a😀b", add_special_tokens=False)

    pieces = list(streamed(Typing(), None, "x", 12))
    assert "".join(pieces) == "a😀b"
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_command_prints_the_answer_and_beside_it_the_untouched_models(checkpoint, model, folder, answers, capsys):
    prompt, answer = next(iter(answers.items()))
    assert command(checkpoint, "ask", folder, prompt, "--max-tokens", 12) == 0
    assert capsys.readouterr().out == f"{answer}\n"
    assert command(checkpoint, "ask", folder, prompt, "--baseline", "--max-tokens", 12) == 0
    untouched = model.encoder.decode(model.generate([model.encoder.prompt(prompt)], 12)[0])
    shown = f"baseline: {untouched}\n{adapters.variant_of(folder).name}: {answer}\n"
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("place", ["file", "standard input"])
def test_each_line_of_a_file_gets_a_json_object(checkpoint, folder, answers, tmp_path, capsys, monkeypatch, place):
    text = "\n\n".join(answers)
    (tmp_path / "prompts.txt").write_text(text, "utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    named = tmp_path / "prompts.txt" if place == "file" else "-"
    assert command(checkpoint, "ask", folder, "--prompts", named, "--baseline", "--max-tokens", 12) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], line["answer"]) for line in found] == list(answers.items())
    assert all(line.keys() == {"prompt", "answer", "baseline"} for line in found)


def test_lines_without_the_baseline_ask_only_the_adapter(model, folder, answers):
    adapter = model.load_adapter(adapters.variant_of(folder), folder)
    prompt, answer = next(iter(answers.items()))
    (line,) = lines(model, {"x": adapter}, [prompt], 12)
    assert json.loads(line) == {"prompt": prompt, "answer": answer}


def test_an_adapter_is_listed_with_the_facts_written_into_it(model, examples, tmp_path, checkpoint, capsys):
    variant = replace(variants.parse(ENGRAM, "test"), about="a memory for a test")
    (trained := tmp_path / "trained").mkdir()
    (out := tmp_path / "out").mkdir()
    model.train(variant, examples, 0, trained, quiet)
    adapters.copy(trained, out, variant)
    assert cli.main(["list", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == ["tiny-engram: a memory for a test", "8 keys, 0 of them written"]
    assert command(checkpoint, "write", out, "NEW:uvw", "silver") == 0
    capsys.readouterr()
    assert cli.main(["list", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["9 keys, 1 of them written", "NEW:uvw -> silver"]
    assert command(checkpoint, "ask", out, "NEW:uvw") == 0
    assert capsys.readouterr().out == "silver\n"
    (tmp_path / "more.csv").write_text("key,value\nthe owner of the boat,Ada\nNEW:uvx,copper\n")
    assert command(checkpoint, "write", out, "--from", tmp_path / "more.csv") == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "the owner of the boat -> Ada",
        "NEW:uvx -> copper",
    ]
    (tmp_path / "more.csv").write_text("key,value\nNEW:uvx,copper\nNEW:uvy,tin\n")
    assert command(checkpoint, "write", out, "--from", tmp_path / "more.csv") == 0, "goes on where it stopped"
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "NEW:uvx is known already",
        "NEW:uvy -> tin",
    ]
    (tmp_path / "more.csv").write_text("key,value\nNEW:uvz,zinc\nnew: UVZ,lead\n")
    assert command(checkpoint, "write", out, "--from", tmp_path / "more.csv") == 2
    assert "are one key up to case" in capsys.readouterr().err
    assert cli.main(["list", str(out)]) == 0
    assert "12 keys, 4 of them written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["ask", "{empty}", "x"], "no trained adapter here"),
        (["list", "{empty}"], "no trained adapter here"),
        (["ask", "{empty}"], "give either a prompt or --prompts FILE"),
        (["ask", "{empty}", "x", "--prompts", "y"], "give either a prompt or --prompts FILE"),
        (["ask", "{empty}", "--prompts", "{empty}/none"], "--prompts"),
        (["ask", "{empty}", "--prompts", "{empty}/blank"], "no prompts; write one a line"),
        (["write", "{empty}", "x"], "give either a key and a value, or --from FILE"),
        (["write", "{empty}", "x", "y", "--from", "z.csv"], "give either a key and a value, or --from FILE"),
        (["write", "{empty}", "--from", "{empty}/none.csv"], "No such file"),
        (["ask", "{empty}", "x", "--max-tokens", "0"], "use 1 or more"),
        (["ask", "{empty}", "x", "--max-tokens", "few"], "not a whole number"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_a_line_before_a_model_is_loaded(tmp_path, capsys, args, says):
    (tmp_path / "blank").write_text(" \n\n")
    assert cli.main([arg.replace("{empty}", str(tmp_path)) for arg in args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
