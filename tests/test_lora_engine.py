"""LoRA by Unsloth: engine selection, and training in a subprocess. A stand-in replaces Unsloth, which needs a GPU."""

import importlib.util
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from engram_bench import backends, cli, options, variants
from engram_bench.backends.torch import unsloth as torch_unsloth
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.data.training import TrainingSet
from engram_bench.errors import UsageError
from engram_bench.store import adapters, models
from tests.conftest import LORA, make_checkpoint, quiet

# Loads and wraps by transformers and peft, and takes what Unsloth's FastLanguageModel takes of what is given to it.
STAND_IN = """
import peft, torch, transformers

print("words of welcome")

class FastLanguageModel:
    @staticmethod
    def from_pretrained(model_name, max_seq_length, dtype, load_in_4bit, trust_remote_code, use_exact_model_name,
                        use_gradient_checkpointing, random_state):
        return transformers.AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype), None

    @staticmethod
    def get_peft_model(model, r, target_modules, lora_alpha, lora_dropout, bias, layers_to_transform,
                       use_gradient_checkpointing, random_state):
        torch.manual_seed(random_state)
        config = peft.LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=target_modules, task_type="CAUSAL_LM",
                                 layers_to_transform=layers_to_transform)
        model = peft.get_peft_model(model, config)
        model.config.update({"unsloth_version": "0"})
        return model
"""


@pytest.fixture(autouse=True)
def asked_anew():
    torch_unsloth._missing.cache_clear()
    yield
    torch_unsloth._missing.cache_clear()


@pytest.fixture
def unsloth(tmp_path, monkeypatch):
    """Writes a package of that name for this process and those it starts."""

    def install(text):
        (tmp_path / "site" / "unsloth").mkdir(parents=True)
        (tmp_path / "site" / "unsloth" / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")

    return install


def test_without_a_gpu_peft_trains_and_the_reason_is_kept():
    assert torch_unsloth.pick_engine("auto", "cpu") == ("peft", "Unsloth needs a CUDA device")
    assert torch_unsloth.pick_engine("peft", "cuda") == ("peft", "as asked")
    target = backends.find("cpu")
    assert (target.lora_engine, target.lora_engine_reason) == ("peft", "Unsloth needs a CUDA device")


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (None, "Unsloth is not installed"),
        ("raise ImportError('Unsloth: no torch here')", "Unsloth cannot be imported (ImportError: Unsloth: no torch"),
    ],
)
def test_beside_a_gpu_unsloth_is_taken_where_it_can_be_imported(unsloth, package, reason):
    if package is not None:
        unsloth(package)
    elif "unsloth" in sys.modules or importlib.util.find_spec("unsloth"):
        pytest.skip("Unsloth is installed")
    engine, why = torch_unsloth.pick_engine("auto", "cuda")
    assert engine == "peft"
    assert reason in why
    with pytest.raises(UsageError, match=r"^--engram-lora-engine unsloth: Unsloth [^\n]*; use auto or peft$"):
        torch_unsloth.pick_engine("unsloth", "cuda")


def test_unsloth_is_chosen_where_it_works_and_is_not_imported_for_that(unsloth):
    unsloth("")
    assert torch_unsloth.pick_engine("auto", "cuda") == ("unsloth", "it is installed")
    assert torch_unsloth.pick_engine("unsloth", "cuda")[0] == "unsloth"
    assert "unsloth" not in sys.modules


def test_the_option_follows_the_precedence_of_all_options(monkeypatch):
    monkeypatch.setenv("ENGRAM_BENCH_LORA_ENGINE", "peft")
    assert options.settle({}, lambda name: {"engram_lora_engine": "unsloth"}.get(name, "")).lora_engine == "peft"
    assert options.settle({"engram_lora_engine": "auto"}, lambda _: "").lora_engine == "auto"
    with pytest.raises(UsageError, match="--engram-lora-engine: 'trl' is not one of auto, peft, unsloth"):
        options.settle({"engram_lora_engine": "trl"}, lambda _: "")


@pytest.fixture(scope="module")
def on_cpu(all_in_float32, checkpoint):
    return {engine: TorchModel(checkpoint, "cpu", (engine, "")) for engine in ("peft", "unsloth")}


@pytest.fixture(scope="module")
def sure(all_in_float32, tmp_path_factory):
    """The same on a model whose distributions are far from uniform."""
    folder = make_checkpoint(tmp_path_factory.mktemp("sure"), initializer_range=0.3)
    return {engine: TorchModel(folder, "cpu", (engine, "")) for engine in ("peft", "unsloth")}


def test_its_adapter_is_plain_peft_and_that_of_peft_up_to_rounding(unsloth, on_cpu, examples, tmp_path):
    unsloth(STAND_IN)
    variant, told = variants.parse(LORA, "test"), []
    trainings = {}
    for engine, model in on_cpu.items():
        (tmp_path / engine).mkdir()
        folder = tmp_path / engine
        trainings[engine] = model.train(variant, examples, 3, folder, lambda *p: told.append(p), examples[:3])
    ours, theirs = trainings["unsloth"], trainings["peft"]
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-3)
    assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-3)
    assert told[: len(told) // 2][-1][1:] == told[-1][1:], "both tell of as many steps"
    states = [load_file(tmp_path / engine / "adapter_model.safetensors") for engine in on_cpu]
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], atol=2e-3, rtol=0)
    configs = [json.loads((tmp_path / engine / "adapter_config.json").read_text()) for engine in on_cpu]
    assert configs[0] == configs[1]
    assert "unsloth" not in sys.modules


def test_it_keeps_the_untouched_models_answers_as_peft_does(unsloth, sure, examples, tmp_path):
    unsloth(STAND_IN)
    texts = ["Look up the word KEY:abc please", "What is stored?"]
    variant, trainings = variants.parse(LORA, "test"), {}
    for engine, given in (("peft", texts), ("unsloth", texts), ("unsloth", ())):
        trainings[engine, bool(given)] = sure[engine].train(variant, examples, 3, tmp_path, quiet, replay=given)
    theirs, ours, without = trainings.values()
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-3)
    assert ours.losses != pytest.approx(without.losses, rel=1e-3), "the texts matter"
    assert (ours.replay, without.replay, without.replay_kl) == (2, 0, None)
    assert ours.replay_kl == pytest.approx(theirs.replay_kl, rel=1e-2)
    assert ours.replay_kl > 1e-3


def test_a_training_that_fails_is_one_line_with_its_last_words(unsloth, on_cpu, examples, tmp_path):
    unsloth("import sys\nclass FastLanguageModel:\n    def from_pretrained(**_): sys.exit('CUDA out of memory')")
    with pytest.raises(UsageError) as caught:
        on_cpu["unsloth"].train(variants.parse(LORA, "test"), examples, 0, tmp_path, quiet)
    told = "Unsloth could not train tiny-lora (CUDA out of memory); use --engram-lora-engine peft"
    assert str(caught.value) == told
    assert not list(tmp_path.glob("adapter*"))


def test_an_engine_has_adapters_of_its_own_and_shares_the_memories(checkpoint, on_cpu, examples, monkeypatch):
    monkeypatch.setattr(TorchModel, "versions", lambda self: {})
    model = models.resolve(str(checkpoint))
    for name, count in (("lora", 2), ("engram", 1)):
        (_, variant) = variants.select(name)
        data = TrainingSet("bare", tuple(examples))
        folders = {adapters.folder_of(backend, model, variant, data, 0) for backend in on_cpu.values()}
        assert len(folders) == count, name


def test_four_bits_without_unsloth_are_refused_in_one_line(checkpoint, own_cache, tmp_path, capsys):
    file = tmp_path / "small.yaml"
    file.write_text(LORA.replace("rank: 4", "rank: 4\nfour_bit: true"))
    assert cli.main(["train", str(file), "--model", str(checkpoint), "--backend", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "only Unsloth trains in 4 bits, but peft trains a LoRA here (Unsloth needs a CUDA device)" in line
