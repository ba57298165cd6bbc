"""Base models, whose tokenizers have no chat template: every part that a model with a template takes, they take too."""

import json
from importlib.util import find_spec

import pytest

from engram_bench import cli, variants
from engram_bench.prompts import SEPARATOR, shared_prefix
from tests.conftest import ENGRAM, LORA, PATTERNS, UNIGRAM, in_float32, make_checkpoint, quiet
from tests.running import run

KINDS = {"engram": ENGRAM, "text": ENGRAM + "span: text\n", "lora": LORA, "unigram": UNIGRAM}
ARCHITECTURES = ["Llama", "Qwen2", "Phi", "Gemma"]
BACKENDS = ["cpu", pytest.param("mlx", marks=pytest.mark.skipif(not find_spec("mlx"), reason="MLX is not installed"))]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folders(request, tmp_path_factory):
    """A base model, and the same model with a chat template."""
    return [make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, chat=chat) for chat in (False, True)]


@pytest.fixture
def folder(folders):
    return folders[0]


def load(folder, backend):
    if backend == "cpu":
        return in_float32(folder)
    import mlx.core as mx

    from engram_bench.backends.mlx.backend import MlxModel

    mx.set_default_device(mx.cpu)
    return MlxModel(folder, "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_model_is_trained_asked_and_scored(folder, backend, kind, examples, tmp_path):
    model, variant = load(folder, backend), variants.parse(KINDS[kind], "test")
    prompts = [model.encoder.prompt(example.prompt) for example in examples]
    answers = [model.encoder.answer(example.answer) for example in examples]
    assert shared_prefix(prompts) == 0
    losses = model.train(variant, examples, 0, tmp_path, quiet, examples[:4]).losses
    assert losses[-1] < losses[0]
    adapter = model.load_adapter(variant, tmp_path)
    untouched = model.generate(prompts, 8)
    with model.attached(adapter):
        together = model.generate(prompts, 8)
        assert together[:3] == [model.generate([prompt], 8)[0] for prompt in prompts[:3]]
        assert together[0] == list(model.stream(prompts[0], 8))
        scores = model.log_probabilities(list(zip(prompts, answers, strict=True)))
        alone = model.log_probabilities([(prompts[3], answers[3])])
    assert scores[3] == pytest.approx(alone[0], abs=1e-3)
    assert [len(found) for found in scores] == [len(answer) for answer in answers]
    other = [(model.encoder.prompt(text), (5, 6)) for text in ("hello", "x")]
    moved = model.collateral(adapter, other)
    assert (moved.kl_mean < 1e-6) == (kind == "engram")
    assert model.generate(prompts, 8) == untouched


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_memory_stores_as_much_in_a_base_model(folders, backend, examples, tmp_path):
    right = []
    for folder in folders:
        model, variant = load(folder, backend), variants.parse(ENGRAM, "test")
        model.train(variant, examples, 0, tmp_path, quiet)
        with model.attached(model.load_adapter(variant, tmp_path)):
            answers = model.generate([model.encoder.prompt(example.prompt) for example in examples], 8)
        right.append([model.encoder.decode(ids) == e.answer for ids, e in zip(answers, examples, strict=True)])
    assert sum(right[0]) == pytest.approx(sum(right[1]), abs=1)


def test_facts_are_written_into_the_memory_of_a_base_model(examples, tmp_path, capsys):
    variant, folder = variants.parse(ENGRAM, "test"), make_checkpoint(tmp_path / "model", chat=False)
    in_float32(folder).train(variant, examples, 0, tmp_path, quiet)
    args = [str(tmp_path), "NEW:uvw", "silver", "--backend", "cpu", "--model", str(folder)]
    assert cli.main(["write", *args]) == 0
    assert "NEW:uvw -> silver" in capsys.readouterr().out
    refused = [str(tmp_path), "NEW:uvx", f"silver{SEPARATOR}gold", *args[3:]]
    assert cli.main(["write", *refused]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"contains {SEPARATOR!r}, which ends this model's answer or turn; change the value" in line


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_stop_tokens_of_the_generation_config_end_an_answer(backend, tmp_path):
    folder = make_checkpoint(tmp_path, chat=False)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert load(folder, backend).stop_ids == {1, 7}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_run_measures_every_variant_of_a_base_model(backend, tmp_path):
    model = make_checkpoint(tmp_path / "model", chat=False)
    (tmp_path / "colours.yaml").write_text(PATTERNS)
    args = [
        "--engram-model", model, "--engram-patterns", tmp_path / "colours.yaml", "--engram-backend", backend,
        "--engram-variants", "all", "--engram-profile", "smoke", "--engram-report", tmp_path / "runs",
    ]  # fmt: skip
    result = run(*args, ENGRAM_BENCH_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stdout
    latest = tmp_path / "runs" / "latest"
    report = json.loads((latest / "report.json").read_text())
    assert {cell["variant"] for cell in report["cells"]} == set(variants.BUILT_IN)
    assert repr(SEPARATOR) in report["model"]["prompt"]
    assert "no chat template" in (latest / "report.md").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text('name: bad\nexamples:\n- {input: KEY:abc, output: red}\n- {input: KEY:bcd, output: "a <|end|>"}\n')
    result = run(*args, "--engram-patterns", bad, ENGRAM_BENCH_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 2, result.stdout
    (line,) = [line for line in (result.stdout + result.stderr).splitlines() if "contains '<|end|>'" in line]
    assert f"{bad}:4: output 'a <|end|>'" in line
