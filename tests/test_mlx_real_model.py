"""MLX and torch on the real model: an adapter gives the same text in both frameworks. Takes minutes on Linux."""

from dataclasses import replace

import pytest

pytest.importorskip("mlx.core", reason='MLX is not installed; run: pip install -e ".[mlx]"', exc_type=ImportError)

import mlx.core as mx

from engram_bench import variants
from engram_bench.backends.mlx.backend import MlxModel, pick_device
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.data import patterns, prompt_sets
from engram_bench.shipped import PATTERNS
from engram_bench.store import models
from tests.test_end_to_end import MEMORY

pytestmark = pytest.mark.slow
EPOCHS = {"torch": 20, "mlx": 1}  # as many as recall takes, where that does not take an hour
ITEMS, NEW_TOKENS, PROMPTS = 8, 8, 50


@pytest.fixture(scope="module")
def both():
    """Both in float32, so that what has to be equal can be asked to be."""
    folder = models.resolve("bundled").folder
    theirs, ours = TorchModel(folder, "cpu"), MlxModel(folder, pick_device("auto"))
    theirs.model.float()
    ours.model.set_dtype(mx.float32)
    return {"torch": theirs, "mlx": ours}


PAPERS = variants.select("engram")[1]


@pytest.mark.parametrize(
    ("trained_in", "memory"),
    [("torch", variants.parse(MEMORY, "test")), ("mlx", variants.parse(MEMORY, "test")), ("torch", PAPERS)],
    ids=["keyed, from torch", "keyed, from mlx", "the paper's, from torch"],
)
def test_an_adapter_of_either_gives_the_same_text_in_both(both, trained_in, memory, tmp_path):
    category = patterns.load(PATTERNS / "synthetic.yaml").categories["synthetic"]
    items = category.split("seen")[:ITEMS]
    inputs = {item.input for item in items}
    examples = [e for e in category.training_examples() if e.prompt[slice(*e.key)] in inputs]
    variant = replace(memory, training=replace(memory.training, epochs=EPOCHS[trained_in], steps=()))
    both[trained_in].train(variant, examples, 0, tmp_path, lambda *_: None)
    ways = [(split, turn) for split in ("seen", "rephrased") for turn in (0, 1)]
    asked = [category.question(item, split, turn)[1] for item in items for split, turn in ways]
    asked += prompt_sets.control(4)[: PROMPTS - len(asked)]
    assert len(set(asked)) == PROMPTS
    texts = {}
    for name, backend in both.items():
        prompts = [backend.encoder.prompt(text) for text in asked]
        with backend.attached(backend.load_adapter(variant, tmp_path)):
            texts[name] = [backend.encoder.decode(answer) for answer in backend.generate(prompts, NEW_TOKENS)]
    assert texts["mlx"] == texts["torch"]
    if trained_in == "torch":
        right = [text == items[i // len(ways)].output for i, text in enumerate(texts["mlx"][: ITEMS * len(ways)])]
        assert sum(right) >= 0.85 * len(right)
