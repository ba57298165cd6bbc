"""A LoRA on the upper layers alone: which layers it adapts, and that it trains as if all layers ran in every step."""

import re

import pytest
from safetensors.torch import load_file

from engram_bench import variants
from engram_bench.backends.torch.peft_methods import LoraAdapter
from engram_bench.errors import UsageError
from tests.conftest import LORA, in_float32, quiet

TEXTS = ("KEY:abc is a nice name", "The capital of France is Paris.")


@pytest.fixture(scope="module")
def model(checkpoint):
    return in_float32(checkpoint)


def lora(first_layer):
    return variants.parse(LORA + f"first_layer: {first_layer}\n", "test")


@pytest.mark.parametrize(("first_layer", "numbers"), [(0, {0, 1, 2}), (1, {1, 2}), (0.7, {2})])
def test_only_layers_from_the_first_on_are_adapted(model, examples, tmp_path, first_layer, numbers):
    model.train(lora(first_layer), examples[:4], 0, tmp_path, quiet)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in saved} == numbers
    assert not any("lm_head" in name for name in saved)
    loaded = model.load_adapter(lora(first_layer), tmp_path)
    assert loaded.parameter_count() == sum(tensor.numel() for tensor in saved.values())


def test_states_below_the_first_layer_are_computed_once_and_change_nothing(model, examples, tmp_path, monkeypatch):
    """With the number of its first layer hidden, the same LoRA trains by running all layers in every step."""
    found = []
    for name in ("once", "every step"):
        (tmp_path / name).mkdir()
        model.train(lora(1), examples, 0, tmp_path / name, quiet, replay=TEXTS)
        found.append(load_file(tmp_path / name / "adapter_model.safetensors"))
        monkeypatch.setattr(LoraAdapter, "first_layer", property(lambda _: 0, lambda *_: None), raising=False)
    once, every = found
    assert once.keys() == every.keys()
    for name, tensor in once.items():
        assert (tensor - every[name]).abs().max() < 2e-4 * tensor.abs().max()


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match="layer 3 does not exist: this model has layers 0 to 2"):
        lora(3).config.check(3)
    with pytest.raises(UsageError, match=r"first_layer has 1\.5; a place is a share of the depth below 1"):
        lora(1.5)


def test_mlx_adapts_the_same_layers(checkpoint, examples, tmp_path):
    pytest.importorskip("mlx.core")
    from engram_bench import backends

    mlx = backends.find("mlx").load(checkpoint)
    mlx.train(lora(1), examples[:4], 0, tmp_path, quiet)
    saved = load_file(tmp_path / "adapters.safetensors")
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in saved} == {1, 2}
