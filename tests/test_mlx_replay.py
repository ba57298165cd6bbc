"""Replay in MLX: the loss on the untouched model's distributions, and what it keeps of the model."""

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason='MLX is not installed; run: pip install -e ".[mlx]"', exc_type=ImportError)

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from engram_bench import variants
from engram_bench.backends import replay
from engram_bench.backends.mlx.backend import MlxModel
from tests.conftest import ENGRAM, LORA, make_checkpoint, quiet

TEXTS = ["Look up the word KEY:abc please", "KEY:abc is a nice name", "What is stored?", "The capital is Paris."]


@pytest.fixture(scope="module")
def sure(tmp_path_factory):
    """A random model whose distributions are far from uniform."""
    mx.set_default_device(mx.cpu)
    return MlxModel(make_checkpoint(tmp_path_factory.mktemp("sure"), initializer_range=0.3), "cpu")


def test_replay_keeps_the_model_and_the_answers_are_learned_all_the_same(sure, examples, tmp_path):
    text = LORA[: LORA.index("training")] + "training: {epochs: 40, steps: [5, 120], batch_size: 8, lr: 1.0e-2}"
    variant, found = variants.parse(text, "test"), []
    prompts = [sure.encoder.prompt(text) for text in TEXTS]
    texts = list(zip(prompts, sure.generate(prompts, 16), strict=True))
    for given in ((), TEXTS):
        training = sure.train(variant, examples[:12], 0, tmp_path, quiet, replay=given)
        assert training.ended_early
        assert training.replay == len(given)
        found.append(sure.collateral(sure.load_adapter(variant, tmp_path), texts).kl_mean)
    assert found[1] < 0.7 * found[0]


def test_a_steps_gradient_is_that_of_the_plain_loss(sure, examples, tmp_path, monkeypatch):
    training = "training: {epochs: 3, batch_size: 8, lr: 1.0e-2, clip: 1.0e+9, replay_weight: 0.7}"
    variant = variants.parse(LORA[: LORA.index("training")] + training, "test")
    steps = []

    def clipped(gradients, most):
        steps.append((tree_flatten(sure.model.trainable_parameters()), dict(tree_flatten(gradients))))
        return gradients, 0

    monkeypatch.setattr("engram_bench.backends.mlx.training.clip_grad_norm", clipped)
    sure.train(variant, examples[:6], 0, tmp_path, quiet, replay=TEXTS[:2])  # all six and both in every step
    pairs, texts = [sure.encoder.pair(e) for e in examples[:6]], replay.answered(sure, TEXTS[:2])

    def logs(pair):
        prompt, answer = pair
        rows = sure.rows([(prompt, answer[:-1])], 0)
        found = sure.forward(sure.prefix_state(prompt, 0), rows, rows.mask)[0][len(prompt.ids) - 1 :]
        return found - mx.logsumexp(found, axis=-1, keepdims=True)

    untouched = mx.concatenate([logs(pair) for pair in texts])

    def loss(weight):
        right = [logs(pair)[mx.arange(len(pair[1])), mx.array(pair[1])] for pair in pairs]
        adapted = mx.concatenate([logs(pair) for pair in texts])
        kl = (mx.exp(untouched) * (untouched - adapted)).sum(-1).mean()
        return -mx.concatenate(right).mean() + weight * kl

    parameters, found = steps[-1]  # at the first step, a new LoRA has no divergence
    with sure.attached(sure.load_adapter(variant, tmp_path)):
        sure.model.load_weights(parameters, strict=False)
        expected, alone = (dict(tree_flatten(nn.value_and_grad(sure.model, loss)(w)[1])) for w in (0.7, 0.0))
    assert found.keys() == expected.keys()
    assert any(not np.allclose(found[name], alone[name], rtol=1e-2, atol=1e-3) for name in found)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-2, atol=1e-3)


def test_a_keyed_memory_trains_only_on_texts_that_name_a_key(sure, examples, tmp_path):
    variant, found = variants.parse(ENGRAM, "test"), []
    for given in ((), TEXTS[2:], TEXTS, TEXTS[:2]):
        training = sure.train(variant, examples[:8], 0, tmp_path, quiet, replay=given)
        found.append((training.replay, (tmp_path / "memory.safetensors").read_bytes()))
    assert [count for count, _ in found] == [0, 0, 2, 2]
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[0][1] != found[2][1]
