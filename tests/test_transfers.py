"""Copies between host and accelerator, counted on the pretend device."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.memory_cost import OnHost, whole_memory
from engram_bench import variants
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.backends.torch.device import make_repeatable, uploaded
from engram_bench.memory.torch import EngramLayer
from tests.conftest import ENGRAM, LORA, UNIGRAM, quiet
from tests.pretend_device import NAME, PretendDevice, without_device
from tests.running import ROOT

KINDS = {"engram": ENGRAM, "lora": LORA, "unigram": UNIGRAM}
pytestmark = [
    pytest.mark.usefixtures("all_in_float32"),
    pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning"),
]


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", without_device(AutoModelForCausalLM.from_pretrained))
    with PretendDevice() as device:
        yield device


@pytest.fixture(scope="module")
def on_cpu(all_in_float32, checkpoint):
    return TorchModel(checkpoint, "cpu")


@pytest.fixture(scope="module", params=["baseline", *KINDS])
def trained(request, on_cpu, examples, tmp_path_factory):
    """A variant, its adapter's folder, and the answers with it on the CPU: greedy, drawn, and scores."""
    variant = folder = adapter = None
    if request.param != "baseline":
        variant, folder = variants.parse(KINDS[request.param], "test"), tmp_path_factory.mktemp(request.param)
        on_cpu.train(variant, examples, 0, folder, quiet)
        adapter = on_cpu.load_adapter(variant, folder)
    prompts = [on_cpu.encoder.prompt(example.prompt) for example in examples[:4]]
    with on_cpu.attached(adapter):
        answers = on_cpu.generate(prompts, 8), on_cpu.generate(prompts, 8, seeds=[0, 1, 2, None])
        return variant, folder, *answers, on_cpu.log_probabilities([(prompt, (5, 6, 7)) for prompt in prompts])


def test_an_accelerator_gives_the_answers_of_the_cpu(device, checkpoint, trained, examples):
    variant, folder, greedy, drawn, scores = trained
    model = TorchModel(checkpoint, NAME)
    prompts = [model.encoder.prompt(example.prompt) for example in examples[:4]]
    with model.attached(variant and model.load_adapter(variant, folder)):
        assert model.generate(prompts, 8) == greedy
        assert model.generate(prompts, 8, seeds=[0, 1, 2, None]) == drawn
        found = model.log_probabilities([(prompt, (5, 6, 7)) for prompt in prompts])
    np.testing.assert_allclose(found, scores, atol=1e-5)


def test_a_decoded_token_costs_one_copy_each_way_whatever_is_attached(device, checkpoint, trained, examples):
    variant, folder, *_ = trained
    model = TorchModel(checkpoint, NAME)
    prompt = model.encoder.prompt(examples[0].prompt)
    counts = []
    with model.attached(variant and model.load_adapter(variant, folder)):
        for _ in model.stream(prompt, 8, ignore_eos=True):
            counts.append((device.up, device.down))
    assert np.diff(counts, axis=0).tolist() == [[1, 1]] * 7


def test_a_drawn_token_costs_one_more_upload_for_its_draws(device, checkpoint, examples):
    model = TorchModel(checkpoint, NAME)
    prompts = [model.encoder.prompt(example.prompt) for example in examples[:4]]
    costs = []
    for tokens in (2, 3):
        device.up = device.down = 0
        model.generate(prompts, tokens, seeds=[0, 1, 2, None])
        costs.append((device.up, device.down))
    assert np.diff(costs, axis=0).tolist() == [[2, 1]]


def test_a_table_on_the_host_answers_as_one_on_the_device(device, checkpoint, examples):
    model = TorchModel(checkpoint, NAME)
    prompts = [model.encoder.prompt(example.prompt) for example in examples[:4]]
    answers = {}
    for kind in (EngramLayer, OnHost):
        torch.manual_seed(0)
        adapter = whole_memory(model, 3000, kind)
        assert {memory.table.device.type for memory in adapter.memories()} == {"cpu" if kind is OnHost else NAME}
        with model.attached(adapter):
            answers[kind] = model.generate(prompts, 8)
    assert answers[OnHost] == answers[EngramLayer] != model.generate(prompts, 8)


def test_the_cost_of_a_memory_is_measured_for_each_batch_and_place(checkpoint, tmp_path):
    out = tmp_path / "cost.json"
    sizes = ["--rows", "2000,3000", "--batches", "1,2", "--tokens", "2"]
    script = [sys.executable, str(ROOT / "benchmarks" / "memory_cost.py"), "--model", str(checkpoint)]
    result = subprocess.run([*script, "--device", "cpu", *sizes, "--out", str(out)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    steps = json.loads(out.read_text())["steps"]
    places = ["none", *(f"{rows} rows on the {place}" for rows in ("2,000", "3,000") for place in ("device", "host"))]
    assert [(step["batch"], step["memory"]) for step in steps] == [
        (batch, place) for batch in (1, 2) for place in places
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_an_accelerator_mixes_no_devices(device, checkpoint, examples, kind, tmp_path, monkeypatch):
    optimizer = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [NAME])
    model = TorchModel(checkpoint, NAME)
    training = model.train(variants.parse(KINDS[kind], "test"), examples[:8], 0, tmp_path, quiet)
    assert training.losses[-1] < training.losses[0]


def test_arrays_of_any_shape_arrive_whole():
    arrays = [np.arange(6).reshape(1, 2, 3), np.array([[-5]]), np.empty((2, 0), np.int64), np.arange(2)]
    found = uploaded("cpu", arrays)
    assert [tensor.shape for tensor in found] == [array.shape for array in arrays]
    assert all(torch.equal(tensor, torch.from_numpy(array)) for tensor, array in zip(found, arrays, strict=True))


def test_cuda_is_asked_for_the_same_numbers_in_every_run(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    make_repeatable("cpu")
    assert not torch.are_deterministic_algorithms_enabled(), "a CPU is left at its fastest"
    try:
        make_repeatable("cuda")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
