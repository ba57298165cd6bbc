"""The published module against its golden vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from engram_bench.memory.hashing import NgramHasher
from engram_bench.memory.torch import PaperEngram

GOLDEN = Path(__file__).parent / "golden"
VECTORS = dict(np.load(GOLDEN / "engram_module_golden.npz"))
CONFIG = json.loads(VECTORS["config"].tobytes())
COMPRESSED = np.load(GOLDEN / "smollm2_compressed_ids.npz")["compressed_ids"].astype(np.int64)
NUMBERS = ("indices", "hidden", "output", "gate")
IDS = torch.from_numpy(VECTORS["input_ids"])


def make_hasher():
    names = ("vocab_size_per_ngram", "max_ngram_size", "layer_ids", "pad_id", "seed")
    shape = {name: CONFIG[name] for name in names}
    return NgramHasher(compressed_ids=COMPRESSED, heads_per_ngram=CONFIG["heads_per_ngram"], **shape)


def golden(layer):
    """(parameters by name, the other arrays by name)"""
    own = {name.partition(".")[2]: array for name, array in VECTORS.items() if name.startswith(f"{layer}.")}
    parameters = {name: torch.from_numpy(array) for name, array in own.items() if name not in NUMBERS}
    return parameters, {name: own[name] for name in NUMBERS}


def make_module(layer, dtype):
    built = PaperEngram(make_hasher(), layer, CONFIG["hidden_size"], CONFIG["width_per_head"], CONFIG["kernel_size"])
    return built.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layer", CONFIG["layer_ids"])
def test_golden_vectors(layer, dtype):
    parameters, numbers = golden(layer)
    module = make_module(layer, dtype)
    module.load_state_dict(parameters)
    hidden = torch.from_numpy(numbers["hidden"]).to(dtype)
    assert np.array_equal(module.hasher.indices(IDS.numpy(), layer), numbers["indices"])
    with torch.no_grad():
        found = {"output": module(hidden, IDS), "gate": module.gate(hidden, IDS)}
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        np.testing.assert_allclose(tensor.numpy(), numbers[name], atol=1e-5, rtol=0)


def test_a_new_module_adds_the_gated_value_alone():
    """The convolution starts at zero."""
    module = make_module(2, torch.float32)
    hidden = torch.randn(2, 24, CONFIG["hidden_size"])
    value = module.value_proj(module._looked_up(IDS)) * module.gate(hidden, IDS)[..., None]
    assert torch.equal(module(hidden, IDS), value)


def test_a_token_depends_on_no_later_one_and_on_those_that_the_convolution_reaches():
    parameters, numbers = golden(2)
    module = make_module(2, torch.float64)
    module.load_state_dict(parameters)
    hidden = torch.from_numpy(numbers["hidden"]).double().requires_grad_()
    module(hidden, IDS)[0, 15].square().sum().backward()
    assert hidden.grad[0].abs().sum(-1).nonzero().flatten().tolist() == [6, 9, 12, 15]


def test_negative_ids_are_refused_by_name():
    with pytest.raises(ValueError, match=r"input_ids has -100; token ids are 0 or more"):
        make_module(2, torch.float32)(torch.zeros(1, 2, CONFIG["hidden_size"]), torch.tensor([[5, -100]]))
