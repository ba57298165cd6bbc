"""The MLX backend on tiny random models: the same model as torch, the same adapters, exact detaching, training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mlx.core", reason='MLX is not installed; run: pip install -e ".[mlx]"', exc_type=ImportError)

import mlx.core as mx
from mlx.utils import tree_flatten

from engram_bench import variants
from engram_bench.backends.mlx.backend import MlxModel
from engram_bench.errors import UsageError
from engram_bench.memory.mlx import injected
from engram_bench.memory.torch import decoder_layers
from engram_bench.prompts import shared_prefix
from tests.conftest import ENGRAM, ENGRAM_LORA, LORA, PATTERNS, UNIGRAM, in_float32, make_checkpoint, quiet
from tests.running import run

KINDS = {"engram": ENGRAM, "lora": LORA, "unigram": UNIGRAM, "engram-lora": ENGRAM_LORA}
SHARED = {"engram": ENGRAM, "unigram": UNIGRAM}  # one format for all backends; LoRA has its library's own
TEXTS = ["KEY:abc", "Look up KEY:def please", "What is stored?", "x"]


@pytest.fixture(scope="module")
def model(checkpoint):
    return on_cpu(checkpoint)


def on_cpu(folder):
    """float32 on the CPU of any machine, so that it can be compared with torch there."""
    mx.set_default_device(mx.cpu)
    return MlxModel(folder, "cpu")


@pytest.fixture(scope="module")
def torch_model(checkpoint):
    return in_float32(checkpoint)


@pytest.fixture(scope="module", params=KINDS)
def trained(request, model, examples, tmp_path_factory):
    variant = variants.parse(KINDS[request.param], "test")
    folder = tmp_path_factory.mktemp(request.param)
    return variant, folder, model.train(variant, examples, 0, folder, quiet)


def logits(model, text="KEY:abc"):
    rows = model.rows([(model.encoder.prompt(text), ())], 0)
    return np.array(model.forward(model.prefix_state(model.encoder.prompt(text), 0), rows, rows.mask)[0])


def hidden_in_torch(model, text):
    """What the last layer hands on, [tokens, d]."""
    seen = []
    handle = decoder_layers(model.model)[-1].register_forward_hook(lambda *args: seen.append(args[-1]))
    with torch.inference_mode():
        model.forward([], model.rows([(model.encoder.prompt(text), ())], 0), 0)
    handle.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return output.reshape(-1, output.shape[-1]).numpy()


def hidden_in_mlx(model, text):
    seen = []
    with injected(model.model, {len(model.model.layers) - 1: lambda h: seen.append(h) or h}, after=True):
        logits(model, text)
    return np.array(seen[0][0])


def assert_close(found, expected, relative=1e-3):
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < relative


# --- the same model, and the same adapters, as in torch ---------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Phi", "Gemma"])
def test_hidden_states_are_those_of_torch(architecture, tmp_path):
    folder = make_checkpoint(tmp_path, architecture)
    ours, theirs = on_cpu(folder), in_float32(folder)
    assert ours.parameters == theirs.parameters
    assert ours.context == theirs.context == 256
    for text in TEXTS:
        assert_close(hidden_in_mlx(ours, text), hidden_in_torch(theirs, text))


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("trained_in", ["torch", "mlx"])
def test_an_adapter_of_one_backend_does_the_same_in_the_other(kind, trained_in, model, torch_model, examples, tmp_path):
    variant = variants.parse(KINDS[kind], "test")
    (torch_model if trained_in == "torch" else model).train(variant, examples, 0, tmp_path, quiet)
    ours, theirs = model.load_adapter(variant, tmp_path), torch_model.load_adapter(variant, tmp_path)
    assert ours.parameter_count() == theirs.parameter_count()
    prompts = [model.encoder.prompt(e.prompt) for e in examples]
    with model.attached(ours), torch_model.attached(theirs):
        for text in TEXTS:
            assert_close(hidden_in_mlx(model, text), hidden_in_torch(torch_model, text))
        assert model.generate(prompts, 8) == torch_model.generate(prompts, 8)
    assert not np.allclose(hidden_in_mlx(model, "KEY:abc"), hidden_with(model, ours, "KEY:abc"), rtol=1e-2)


def hidden_with(model, adapter, text):
    with model.attached(adapter):
        return hidden_in_mlx(model, text)


def test_both_backends_write_the_same_names_shapes_and_config(model, torch_model, examples, tmp_path):
    from safetensors.numpy import load_file

    variant = variants.parse(ENGRAM, "test")
    found = []
    for name, backend in (("mlx", model), ("torch", torch_model)):
        (tmp_path / name).mkdir()
        backend.train(variant, examples, 0, tmp_path / name, quiet)
        arrays = load_file(tmp_path / name / "memory.safetensors")
        config = json.loads((tmp_path / name / "memory.json").read_text())
        addresses = {name: array.tolist() for name, array in arrays.items() if array.dtype == np.int64}
        found.append(({name: (array.shape, array.dtype) for name, array in arrays.items()}, addresses, config))
    assert found[0] == found[1]


def test_the_shuffled_control_reads_the_same_wrong_rows(model, torch_model, examples, tmp_path):
    variant = variants.parse(ENGRAM, "test")
    torch_model.train(variant, examples, 0, tmp_path, quiet)
    shuffled = replace(variant, damage="shuffle")
    ours, theirs = (each.load_adapter(shuffled, tmp_path) for each in (model, torch_model))
    with torch_model.attached(theirs):
        assert_close(hidden_with(model, ours, "KEY:abc"), hidden_in_torch(torch_model, "KEY:abc"))


def test_lora_is_loaded_by_mlx_lms_own_loader(model, checkpoint, examples, tmp_path):
    from mlx_lm.utils import load_adapters, load_model

    variant = variants.parse(LORA, "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    with model.attached(model.load_adapter(variant, tmp_path)):
        ours = logits(model)
    theirs, _ = load_model(checkpoint, model_config={"rope_theta": 500.0})
    load_adapters(theirs, str(tmp_path)).eval()
    ids = mx.array([model.encoder.prompt("KEY:abc").ids])
    np.testing.assert_allclose(ours, np.array(theirs(ids)[0]), rtol=1e-4, atol=1e-5)


def test_greedy_decoding_is_that_of_mlx_lm(model, checkpoint):
    from mlx_lm.generate import generate_step

    prompt = model.encoder.prompt("What is stored?")
    theirs = [int(token) for token, _ in generate_step(mx.array(prompt.ids), model.model, max_tokens=12)]
    end = theirs.index(model.encoder.eos_id) if model.encoder.eos_id in theirs else None
    assert model.generate([prompt], 12)[0] == theirs[:end]


def test_rotary_positions_that_differ_by_kind_of_layer_are_those_of_transformers(tmp_path):
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
    }
    kinds = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window_pattern": 3}
    sizes = {"head_dim": 8, "query_pre_attn_scalar": 8, "initializer_range": 0.3}
    folder = make_checkpoint(tmp_path, "Gemma3Text", rope_parameters=ropes, **kinds, **sizes)
    theirs = in_float32(folder)
    rows = theirs.rows([(theirs.encoder.prompt("KEY:abc"), ())], 0)
    with torch.inference_mode():
        wanted = theirs.forward([], rows, 0)[0][0].log_softmax(-1).numpy()
    ours = torch.tensor(logits(MlxModel(folder, "cpu"))).log_softmax(-1).numpy()
    np.testing.assert_allclose(ours.reshape(wanted.shape), wanted, atol=0.01)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["sliding_attention"] |= {"rope_type": "linear", "factor": 8.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="differ between"):
        MlxModel(folder, "cpu")


# --- what every backend owes ------------------------------------------------------------------------------------------


def test_training_lowers_the_loss(trained):
    _, _, training = trained
    assert training.losses[-1] < training.losses[0]
    assert len(training.losses) == training.epochs


def test_a_detached_adapter_leaves_the_baseline_bit_for_bit(model, trained):
    variant, folder, _ = trained
    weights = dict(tree_flatten(model.model.parameters()))
    classes = [type(layer) for layer in model.model.layers]
    before = logits(model)
    with model.attached(model.load_adapter(variant, folder)):
        assert not np.array_equal(logits(model), before), "attached, it does something"
    assert np.array_equal(logits(model), before)
    after = dict(tree_flatten(model.model.parameters()))
    assert weights.keys() == after.keys()
    assert all(mx.array_equal(weights[name], after[name]) for name in weights)
    assert [type(layer) for layer in model.model.layers] == classes


def test_a_failure_while_attached_still_detaches(model, trained):
    variant, folder, _ = trained
    before = logits(model)
    with pytest.raises(KeyboardInterrupt), model.attached(model.load_adapter(variant, folder)):
        raise KeyboardInterrupt
    assert np.array_equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_trains_the_same_adapter_and_another_seed_another(kind, model, examples, tmp_path):
    variant = variants.parse(KINDS[kind], "test")
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        model.train(variant, examples[:8], seed, tmp_path / name, quiet)
        weights.append(next((tmp_path / name).glob("*.safetensors")).read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("size", [1, 3])
def test_batch_size_and_order_leave_answers_alone(model, trained, monkeypatch, size):
    variant, folder, _ = trained
    prompts = [model.encoder.prompt(text) for text in TEXTS]
    seeds = [None, 2, None, 4]
    with model.attached(model.load_adapter(variant, folder)):
        together = model.generate(prompts, 10, seeds=seeds)
        monkeypatch.setattr(model, "batch_size", size)
        assert model.generate(prompts, 10, seeds=seeds) == together
        assert model.generate(prompts[::-1], 10, seeds=seeds[::-1]) == together[::-1]


def test_a_sample_depends_on_its_seed_and_is_the_one_torch_draws(model, torch_model):
    prompts = [model.encoder.prompt(text) for text in TEXTS]
    together = model.generate(prompts, 10, temperature=1.0, seeds=[1, 2, 3, 4])
    alone = [model.generate([p], 10, temperature=1.0, seeds=[s])[0] for p, s in zip(prompts, (1, 2, 3, 4), strict=True)]
    assert together == alone
    assert model.generate(prompts, 10, temperature=1.0, seeds=[9, 2, 3, 4])[0] != together[0]
    assert torch_model.generate(prompts, 10, temperature=1.0, seeds=[1, 2, 3, 4]) == together


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_answers_to_one_prompt_are_those_it_gets_alone(model, temperature):
    seeds = [None, *range(11)]
    prompts = [model.encoder.prompt(text) for text in (*TEXTS[:2] * 5, TEXTS[3], TEXTS[2])]
    alone = [
        model.generate([p], 10, temperature=temperature, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)
    ]
    assert model.generate(prompts, 10, temperature=temperature, seeds=seeds) == alone


def test_cached_decoding_equals_the_uncached_forward(model, trained):
    variant, folder, _ = trained
    prompt = model.encoder.prompt("Look up KEY:cde")
    with model.attached(model.load_adapter(variant, folder)):
        tokens = model.generate([prompt], 8)[0]
        rows = model.rows([(prompt, tokens)], 0)
        whole, _ = model.forward(model.prefix_state(prompt, 0), rows, rows.mask)
    greedy = np.array(whole[len(prompt.ids) - 1 :].argmax(-1)).tolist()
    assert greedy[: len(tokens)] == tokens
    assert len(tokens) == 8 or greedy[len(tokens)] == model.encoder.eos_id


def test_the_memory_recalls_what_it_was_trained_on_in_a_phrasing_it_was_not(model, examples, tmp_path):
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    adapter = model.load_adapter(variant, tmp_path)
    prompts = [model.encoder.prompt(f"Under {e.prompt[slice(*e.key)]} what do you find?") for e in examples]
    for shuffle in (False, True):
        if shuffle:
            adapter = model.load_adapter(replace(variant, damage="shuffle"), tmp_path)
        with model.attached(adapter):
            answers = [model.encoder.decode(ids) for ids in model.generate(prompts, 8)]
        right = sum(a == e.answer for a, e in zip(answers, examples, strict=True)) / len(examples)
        assert right < 1 / 3 if shuffle else right > 0.9
        assert not any(memory.table[0].any() for memory in adapter.memories()), "what no n-gram hashes to"


def test_a_prompt_without_a_trained_key_is_answered_as_by_the_baseline(model, examples, tmp_path):
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    texts = [(model.encoder.prompt(text), (5, 6, 7)) for text in ("What is stored?", "Look up KEY:", "hello")]
    assert model.collateral(model.load_adapter(variant, tmp_path), texts).kl_max == 0.0


def test_scores_are_those_of_torch(model, torch_model, examples, tmp_path):
    variant = variants.parse(UNIGRAM, "test")
    torch_model.train(variant, examples[:8], 0, tmp_path, quiet)
    answers = [(5, 6, 7), (8,), (9, 10), ()]
    texts = [(model.encoder.prompt(text), answer) for text, answer in zip(TEXTS, answers, strict=True)]
    found, expected = [], []
    for backend, results in ((model, found), (torch_model, expected)):
        adapter = backend.load_adapter(variant, tmp_path)
        with backend.attached(adapter):
            results += backend.log_probabilities(texts)
        for answers_only in (True, False):
            divergence = backend.collateral(adapter, texts, answers_only=answers_only)
            results.append([divergence.tokens, divergence.kl_mean, divergence.kl_max, divergence.top1_unchanged])
    assert [len(row) for row in found] == [3, 1, 2, 0, 4, 4]
    assert found[-2][0] == 6, "the tokens of the answers"
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    shared = shared_prefix([prompt for prompt, _ in texts])
    assert found[-1][0] == sum(len(p.ids) + len(a) - shared for p, a in texts)


@pytest.mark.parametrize("architecture", ["Qwen2", "Phi", "Gemma"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures_train_attach_generate_and_detach(architecture, kind, examples, tmp_path):
    other = on_cpu(make_checkpoint(tmp_path / "model", architecture))
    variant = variants.parse(KINDS[kind], "test")
    before = logits(other)
    folder = tmp_path / "adapter"
    folder.mkdir()
    other.train(variant, examples[:8], 0, folder, quiet)
    with other.attached(other.load_adapter(variant, folder)):
        assert not np.array_equal(logits(other), before)
        assert len(other.generate([other.encoder.prompt("KEY:abc")], 4)) == 1
    assert np.array_equal(logits(other), before)


def test_training_that_diverges_is_refused_and_not_saved(model, examples, tmp_path):
    variant = variants.parse(LORA.replace("lr: 1.0e-2", "lr: 1.0e+30"), "test")
    with pytest.raises(UsageError, match="diverged"):
        model.train(variant, examples, 0, tmp_path, quiet)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "truncated", "config", "shape"])
def test_a_damaged_adapter_is_refused_in_one_line(model, trained, tmp_path, damage):
    variant, folder, _ = trained
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights, config = next(tmp_path.glob("*.safetensors")), next(tmp_path.glob("*.json"))
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "config":
        config.write_text("{not json")
    else:
        mx.save_safetensors(str(weights), {"0.table": mx.zeros((3, 3)), "odd.lora_a": mx.zeros(1)})
    with pytest.raises(UsageError, match=r"^[^\n]*adapter[^\n]*$"):
        model.load_adapter(variant, tmp_path)


def test_a_layer_the_model_does_not_have_is_refused(model, examples, tmp_path):
    variant = variants.parse(ENGRAM.replace("[0, 1]", "[0, 7]"), "test")
    with pytest.raises(UsageError, match="layer 7 does not exist"):
        model.train(variant, examples[:4], 0, tmp_path, quiet)


def test_a_folder_mlx_lm_cannot_read_is_refused_in_one_line(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"^[^\n]*mlx-lm cannot load this model[^\n]*$"):
        on_cpu(tmp_path)


def test_a_smoke_run_reports_thresholds_and_asserts_none(checkpoint, tmp_path):
    """Memories come from torch where MLX has no GPU; a LoRA that learnt nothing misses its threshold, and no more."""
    weak = LORA.replace("tiny-lora", "lora").replace("lr: 1.0e-2", "lr: 1.0e-9")
    for name, text in (("colours.yaml", PATTERNS), ("engram.yaml", ENGRAM), ("lora.yaml", weak)):
        (tmp_path / name).write_text(text)
    chosen = f"{tmp_path / 'engram.yaml'},{tmp_path / 'lora.yaml'}"
    result = run(
        "-m", "mlx", "--engram-profile", "smoke", "--engram-model", checkpoint, "--engram-variants", chosen,
        "--engram-patterns", tmp_path / "colours.yaml", "--engram-report", tmp_path / "runs",
        ENGRAM_BENCH_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "engram_bench: mlx on" in result.stdout
    (folder,) = (tmp_path / "runs").glob("*-mlx")
    report = json.loads((folder / "report.json").read_text())
    assert report["backend"]["name"] == "mlx"
    assert report["run"]["peak_memory_mb"] > 0
    assert report["run"]["tokens_s"].keys() == {"baseline", "tiny-engram", "lora"}
    exact = {(c["variant"], c["split"]): c["exact"] for c in report["cells"]}
    assert exact["tiny-engram", "seen"]["rate"] == exact["tiny-engram", "rephrased"]["rate"] == 1.0
    trainers = {v["name"]: v["train"]["backend"] for v in report["variants"] if v["train"]}
    assert trainers == {"tiny-engram": "torch" if report["backend"]["device"] == "cpu" else "mlx", "lora": "mlx"}
    missed = [t["id"] for t in report["thresholds"] if not t["passed"]]
    assert "accuracy/colours/lora/seen" in missed
