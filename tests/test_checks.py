"""Items that the model's tokenizer cannot be asked or cannot answer: refused before anything is trained."""

import json
import shutil

import pytest

from engram_bench import cli
from engram_bench.data import patterns
from engram_bench.errors import UsageError
from engram_bench.options import settle
from engram_bench.prompts import SEPARATOR, PromptEncoder
from engram_bench.run.bench import Bench
from engram_bench.run.checks import alike, faults
from tests.conftest import ENGRAM, LORA, PATTERNS, make_tokenizer

ADDED = """\
  - {input: "KEY:<|end|>", output: "a key may name a special token"}
  - {input: "KEY:end", output: "a<|end|>b"}
  - {input: "KEY:start", output: "<|start|>"}
  - {input: "KEY:turn", output: "red\\nAnswer:\\nblue"}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "colours.yaml"
    path.write_text(PATTERNS + ADDED)
    return path


@pytest.mark.parametrize(
    ("chat", "named"), [(True, {16: "<|end|>", 17: "<|start|>"}), (False, {16: "<|end|>", 18: SEPARATOR})]
)
def test_an_output_that_holds_what_ends_an_answer_or_a_turn_is_named_with_its_line(file, chat, named):
    lines = faults(patterns.load(file), PromptEncoder(make_tokenizer(chat)), {1})
    assert [line.split(": ")[0] for line in lines] == [f"{file}:{number}" for number in named]
    for line, token in zip(lines, named.values(), strict=True):
        assert f"contains {token!r}, which ends this model's answer or turn" in line
        assert "\n" not in line


def test_every_stop_token_of_the_model_counts(file):
    encoder = PromptEncoder(make_tokenizer())
    pink = encoder.answer("pink")[0]
    lines = faults(patterns.load(file), encoder, {1, pink})
    assert len(lines) > 2


def test_what_can_be_answered_is_not_refused(tmp_path):
    (tmp_path / "colours.yaml").write_text(PATTERNS)
    for chat in (True, False):
        assert faults(patterns.load(tmp_path), PromptEncoder(make_tokenizer(chat)), {1}) == []


def test_places_decide_nothing_and_enter_no_fingerprint(tmp_path):
    found = []
    for name, text in (("a.yaml", PATTERNS), ("b.yaml", "# moved down a line\n" + PATTERNS)):
        (tmp_path / name).write_text(text)
        found.append(patterns.load(tmp_path / name))
    assert found[0] == found[1]
    assert found[0].sha256 == found[1].sha256
    first, moved = (loaded.categories["colours"].items[0].place for loaded in found)
    assert (first, moved) == (f"{tmp_path / 'a.yaml'}:5", f"{tmp_path / 'b.yaml'}:6")


ALIKE = """\
  - {input: "K:a", output: "one"}
  - {input: "k:A", output: "two"}
  - {input: "Ｋ : á", output: "three"}
  - {input: "The gate", output: "same"}
  - {input: "the  gate", output: "same"}
"""


def test_keys_that_a_memory_cannot_tell_apart_are_named_with_their_lines_before_training(
    checkpoint, tmp_path, own_cache
):
    file = tmp_path / "alike.yaml"
    file.write_text(PATTERNS + ALIKE)
    (line,) = alike(patterns.load(file))
    assert line.startswith(f"{file}:15: ")
    assert f"'K:a' ({file}:15), 'k:A' ({file}:16), 'Ｋ : á' ({file}:17)" in line
    (tmp_path / "engram-keyed.yaml").write_text(ENGRAM)
    (tmp_path / "lora.yaml").write_text(LORA)
    given = {"engram_model": str(checkpoint), "engram_backend": "cpu", "engram_patterns": str(file)}
    for variant, notes in (("engram-keyed", [line]), ("lora", [])):
        told = []
        settings = settle({**given, "engram_variants": str(tmp_path / f"{variant}.yaml")}, lambda _: "")
        bench = Bench(settings, lambda *call, told=told: told.append(call))
        assert [what for what, _, total in told if total == 0] == notes
        assert bench.recorder.held[0]["dataset"]["keys_alike"] == 1
    assert not own_cache.exists() or not any(own_cache.rglob("*.safetensors"))


def test_a_bench_refuses_them_before_it_trains(checkpoint, file, own_cache, tmp_path, capsys):
    (tmp_path / "engram.yaml").write_text(ENGRAM)
    model = shutil.copytree(checkpoint, tmp_path / "model")
    stop = PromptEncoder(make_tokenizer()).answer("pink")[-2:]  # k and end-of-text
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    given = {"engram_model": str(model), "engram_backend": "cpu", "engram_patterns": str(file)}
    with pytest.raises(UsageError) as refused:
        Bench(settle({**given, "engram_variants": str(tmp_path / "engram.yaml")}, lambda _: ""), lambda *_: None)
    assert len(str(refused.value).splitlines()) == 4
    args = ["train", str(tmp_path / "engram.yaml"), "--model", str(model), "--backend", "cpu", "--patterns", str(file)]
    assert cli.main(args) == 2
    told = capsys.readouterr().err
    assert f"{file}:16: output 'a<|end|>b' contains '<|end|>'" in told
    assert f"{file}:17: output '<|start|>' contains '<|start|>'" in told
    for line, output in ((8, "black"), (11, "pink")):
        assert f"{file}:{line}: output {output!r} contains 'k'" in told, "any of the model's stop tokens"
    assert not (own_cache / "adapters").exists()
