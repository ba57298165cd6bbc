"""The paper's memory in MLX: torch's numbers, from its files, however a text reaches the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mlx.core", reason='MLX is not installed; run: pip install -e ".[mlx]"', exc_type=ImportError)

import mlx.core as mx

from engram_bench import variants
from engram_bench.backends.decoding import Stem
from engram_bench.backends.mlx.backend import MlxModel
from engram_bench.backends.torch.adapters import EngramAdapter
from tests.conftest import PAPER, in_float32, make_checkpoint, quiet

TEXTS = ["KEY:abc", "Look up KEY:def please", "What is stored?", "x"]
OPTIONS = {
    "paper": {},
    "no gate": {"gate": False},
    "no bias": {"bias": False},
    "no convolution": {"kernel": 0},
    "long convolution": {"kernel": 6, "dilation": 4},
    "text": {"span": "text", "acts": "everywhere"},
    "answer": {"span": "key", "acts": "answer"},
}


@pytest.fixture(scope="module", params=["chat", "base"])
def models(request, tmp_path_factory):
    """The same model in both frameworks."""
    folder = make_checkpoint(tmp_path_factory.mktemp("m"), chat=request.param == "chat")
    mx.set_default_device(mx.cpu)
    return in_float32(folder), MlxModel(folder, "cpu")


@pytest.fixture(params=OPTIONS)
def variant(request):
    paper = variants.parse(PAPER, "test")
    return replace(paper, config=replace(paper.config, **OPTIONS[request.param]))


def saved(model, variant, examples, folder):
    """A memory whose every parameter counts, written by torch."""
    torch.manual_seed(0)
    pairs = [model.encoder.pair(example) for example in examples]
    adapter = EngramAdapter.create(model.model, variant.config, model.encoder, pairs)
    for memory in adapter.layers.values():
        for parameter in memory.parameters():
            torch.nn.init.normal_(parameter.data[1:] if parameter is memory.table else parameter.data, std=0.5)
    adapter.save(folder)
    return adapter


def test_a_memory_from_torch_has_the_same_numbers_in_batches_and_in_steps(models, variant, examples, tmp_path):
    ours, mlx = models
    adapter = saved(ours, variant, examples, tmp_path)
    prompts = [ours.encoder.prompt(text) for text in TEXTS]
    answers = [ours.encoder.answer(value)[:3] for value in ("blue", "x = 5:", "KEY:abc", "red")]
    with ours.attached(adapter), torch.no_grad():
        expected = ours.log_probabilities(list(zip(prompts, answers, strict=True)))
        alone = [ours.forward([], ours.rows([text], 0), 0)[0][0] for text in zip(prompts, answers, strict=True)]
    with mlx.attached(mlx.load_adapter(variant, tmp_path)):
        found = mlx.log_probabilities(list(zip(prompts, answers, strict=True)))
        for prefix in {0, mlx.shared(prompts, 0)}:
            stem = Stem(range(len(prompts)), prefix, mlx.prefix_state(prompts[0], prefix))
            batch = mlx.begin(prompts, len(prompts), [stem], 4)
            rows = np.arange(len(prompts))
            for step in range(3):
                for row, logits in zip(rows, np.array(batch._logits), strict=True):
                    wanted = alone[row][len(prompts[row].ids) - 1 + step]
                    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-3, rtol=1e-2)
                if step == 1:
                    rows = np.array([3, 1, 1, 0])
                    batch.keep(rows)
                seen = [ours_windows(ours, adapter, prompts[row], answers[row])[step] for row in rows]
                batch.advance(np.array([answers[row][step] for row in rows]), np.stack(seen))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def ours_windows(model, adapter, prompt, answer):
    """Windows of the answer's tokens."""
    with model.attached(adapter):
        return model.windows(prompt, answer)[len(prompt.ids) :]


def test_what_it_learns_has_the_same_numbers_in_torch(models, variant, examples, tmp_path):
    ours, mlx = models
    found = mlx.train(variant, examples, 0, tmp_path, quiet, replay=["What is stored?"])
    assert found.losses[-1] < found.losses[0]
    with ours.attached(ours.load_adapter(variant, tmp_path)):
        theirs = ours.log_probabilities([(ours.encoder.prompt(TEXTS[0]), ours.encoder.answer("red"))])
    with mlx.attached(mlx.load_adapter(variant, tmp_path)):
        own = mlx.log_probabilities([(ours.encoder.prompt(TEXTS[0]), ours.encoder.answer("red"))])
    assert own[0] == pytest.approx(theirs[0], abs=1e-3)
