"""One test of the real model: the store builds it, it generates text, and a memory recalls eight trained pairs."""

import hashlib
import json

import numpy as np
import pytest

from engram_bench import variants
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.data import patterns
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.memory.keys import KeyIndex, key_name
from engram_bench.shipped import PATTERNS
from engram_bench.store import models
from tests.conftest import in_float32
from tests.test_hashing import COMPRESSED, VECTORS

MEMORY = """\
name: small
kind: engram
about: a memory for a test
layers: [16, 24]
orders: [2, 3, 4]
heads: 1
rows: 20000
width: 16
training: {epochs: 20, batch_size: 8, lr: 3.0e-3, table_lr: 0.2}
"""


@pytest.fixture(scope="module")
def model():
    return TorchModel(models.resolve("bundled").folder, "cpu")


def test_it_is_the_model_it_says_it_is():
    model = in_float32(models.resolve("bundled").folder)  # another answer is as probable, to what bfloat16 can tell
    assert model.parameters == models.PARAMETERS == 134_515_008
    answer = model.generate([model.encoder.prompt("What is the capital of France?")], 12)[0]
    assert "The capital of France is Paris" in model.encoder.decode(answer)


def test_its_compressed_vocabulary_is_the_golden_one(model):
    compressed = compress_vocabulary(model.encoder.tokenizer)
    assert hashlib.sha256(compressed.tobytes()).hexdigest() == VECTORS["compressed_ids_sha256"]
    assert np.array_equal(compressed, COMPRESSED)


def test_every_shipped_key_is_found_whole_and_tells_its_item_from_all_others():
    items = [item for category in patterns.load(PATTERNS).categories.values() for item in category.items]
    index = KeyIndex({key_name(item.input): () for item in items})
    assert len(index.tokens) == len(items)
    for category in patterns.load(PATTERNS).categories.values():
        for item in category.items:
            assert index.find(category.question(item, "rephrased")[1]).key == key_name(item.input)


def test_a_memory_of_eight_random_pairs_recalls_them_in_a_new_phrasing_and_comes_off(model, tmp_path):
    category = patterns.load(PATTERNS / "synthetic.yaml").categories["synthetic"]
    items = category.split("seen")[:8]
    examples = [e for e in category.training_examples() if e.prompt[slice(*e.key)] in {i.input for i in items}]
    asked = [model.encoder.prompt(category.question(item, "rephrased")[1]) for item in items]
    before = model.generate(asked, 8)
    variant = variants.parse(MEMORY, "test")
    training = model.train(variant, examples, 0, tmp_path, lambda *_: None)
    with model.attached(model.load_adapter(variant, tmp_path)):
        answers = [model.encoder.decode(ids) for ids in model.generate(asked, 8)]
    assert json.loads((tmp_path / "memory.json").read_text())["kind"] == "engram"
    assert training.losses[-1] < 0.5 < training.losses[0]
    assert sum(a == item.output for a, item in zip(answers, items, strict=True)) >= 7
    assert model.generate(asked, 8) == before
