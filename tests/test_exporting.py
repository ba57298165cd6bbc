"""A LoRA in the formats of peft and of mlx-lm: the same answers whichever trained it and whichever reads it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from engram_bench import cli, variants
from engram_bench.run import exporting
from engram_bench.store import adapters
from tests.conftest import ENGRAM, LORA, in_float32, needs_torch, quiet

pytestmark = needs_torch
OTHER = "name: tiny-ia3\nkind: peft\nabout: x\nmethod: IA3\ntraining: {epochs: 1, batch_size: 8, lr: 0.01}\n"


@pytest.fixture(scope="module")
def model(checkpoint):
    return in_float32(checkpoint)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    mx = pytest.importorskip("mlx.core", exc_type=ImportError)
    from engram_bench.backends.mlx.backend import MlxModel

    found = MlxModel(checkpoint, "cpu")
    found.model.set_dtype(mx.float32)
    return found


def trained(backend, text, examples, folder_of):
    variant, work, out = variants.parse(text, "test"), folder_of("work"), folder_of("out")
    backend.train(variant, examples, 0, work, quiet)
    adapters.copy(work, out, variant)
    return out


@pytest.fixture(scope="module")
def lora(model, examples, tmp_path_factory):
    return trained(model, LORA, examples, tmp_path_factory.mktemp)


def answers(backend, folder, examples):
    variant = adapters.variant_of(folder)
    with backend.attached(backend.load_adapter(variant, folder)):
        return backend.generate([backend.encoder.prompt(example.prompt) for example in examples], 8)


def exported(folder, form, out):
    assert cli.main(["export", str(folder), "--format", form, "--out", str(out)]) == 0
    (out / adapters.VARIANT).write_text((folder / adapters.VARIANT).read_text())  # for load_adapter of this package
    return out


def test_a_lora_of_torch_answers_the_same_in_mlx(model, theirs, lora, examples, tmp_path):
    made = exported(lora, "mlx", tmp_path / "mlx")
    assert (
        answers(theirs, made, examples)
        == answers(model, lora, examples)
        != model.generate([model.encoder.prompt(example.prompt) for example in examples], 8)
    )


def test_a_lora_of_mlx_answers_the_same_in_torch(model, theirs, examples, tmp_path_factory):
    folder = trained(theirs, LORA, examples, tmp_path_factory.mktemp)
    made = exported(folder, "peft", tmp_path_factory.mktemp("x") / "peft")
    assert answers(model, made, examples) == answers(theirs, folder, examples)


def test_there_and_back_is_the_same_matrix_for_matrix(lora, tmp_path):
    back = exported(exported(lora, "mlx", tmp_path / "mlx"), "peft", tmp_path / "peft")
    before, after = load_file(lora / exporting.PEFT), load_file(back / exporting.PEFT)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    first, second = (json.loads((folder / exporting.CONFIG).read_text()) for folder in (lora, back))
    same = ("r", "lora_alpha", "target_modules", "layers_to_transform")
    assert [first[key] for key in same] == [second[key] for key in same]


def test_peft_itself_reads_it(checkpoint, lora, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    made = exported(exported(lora, "mlx", tmp_path / "mlx"), "peft", tmp_path / "peft")
    plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    read = peft.PeftModel.from_pretrained(plain, made)
    state = peft.get_peft_model_state_dict(read)
    assert state.keys() == load_file(lora / exporting.PEFT).keys()


def test_notes_come_with_what_they_convert(lora, tmp_path):
    made = exported(lora, "gguf-notes", tmp_path / "notes")
    assert "convert_lora_to_gguf.py" in (made / "README.md").read_text()
    assert (made / exporting.PEFT).read_bytes() == (lora / exporting.PEFT).read_bytes()


def test_what_has_no_other_format_is_refused_by_name(model, lora, examples, tmp_path, tmp_path_factory, capsys):
    memory = trained(model, ENGRAM, examples, tmp_path_factory.mktemp)
    other = trained(model, OTHER, examples, tmp_path_factory.mktemp)
    for folder, form, told in (
        (memory, "peft", "EngramMemory"),
        (memory, "mlx", "--backend mlx"),
        (memory, "gguf-notes", "has no other format"),
        (other, "mlx", "mlx-lm has no tiny-ia3"),
        (other, "gguf-notes", "llama.cpp has no tiny-ia3"),
        (lora, "onnx", "--format"),
        (tmp_path, "peft", "no trained adapter here"),
        (lora, "mlx", "not empty"),
    ):
        out = lora if told == "not empty" else tmp_path_factory.mktemp("new") / "out"
        assert cli.main(["export", str(folder), "--format", form, "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


def test_a_lora_with_a_gap_between_its_layers_is_no_lora_of_mlx(lora):
    config, arrays = json.loads((lora / exporting.CONFIG).read_text()), load_file(lora / exporting.PEFT)
    apart = {name.replace("layers.1.", "layers.7."): array for name, array in arrays.items()}
    with pytest.raises(exporting.UsageError, match="neighbouring layers"):
        exporting.to_mlx(config, {**arrays, **apart})
