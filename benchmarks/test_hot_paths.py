"""Times of the steps that run for every token: ``pytest benchmarks``; compare runs with --benchmark-compare."""

import numpy as np
import pytest
import torch

from engram_bench.memory.hashing import NgramHasher
from engram_bench.memory.torch import EngramLayer
from engram_bench.prompts import Prompt, Span, extend_windows, ngram_windows
from engram_bench.variants.configs import EngramConfig

CONFIG = EngramConfig(layers=[2], orders=[2, 3, 4, 6, 8], heads=2, rows=200_000, width=32)
VOCABULARY, HIDDEN, TOUCHED = 49_152, 576, 50_000


@pytest.fixture(scope="module")
def hasher():
    return NgramHasher(
        compressed_ids=np.arange(VOCABULARY),
        vocab_size_per_ngram=[CONFIG.rows] * CONFIG.hashes,
        max_ngram_size=8,
        heads_per_ngram=CONFIG.heads,
        layer_ids=CONFIG.layers,
        pad_id=2,
        seed=0,
        orders=CONFIG.orders,
        keyed=CONFIG.keyed,
    )


def windows(rows, tokens):
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, tokens, 9))


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (128, 1), (32, 16)])
def test_hashing(benchmark, hasher, rows, tokens):
    benchmark(hasher.rows, windows(rows, tokens), 2)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (128, 1), (32, 16)])
def test_memory_layer(benchmark, hasher, rows, tokens):
    seen = windows(rows, tokens)
    trained = np.unique(np.concatenate([hasher.rows(seen, 2).ravel(), np.arange(TOUCHED)]))
    layer = EngramLayer(CONFIG, 2, hasher, trained, HIDDEN)
    hidden = torch.randn(rows, tokens, HIDDEN)

    @torch.inference_mode()
    def look_up_and_add():
        layer.set_slots(torch.from_numpy(layer.slots_for(seen[..., 0], seen)))
        return layer(hidden)

    benchmark(look_up_and_add)


def test_windows_of_a_prompt(benchmark):
    prompt = Prompt(tuple(range(40)), tuple(24 <= i < 35 for i in range(40)))
    benchmark(ngram_windows, prompt, (1, 2, 3), 8, Span(2, 9, tuple(range(26, 33))), 0, on_text=True)


def test_windows_of_a_decoding_step(benchmark):
    last = windows(128, 1)[:, 0]
    benchmark(extend_windows, last, last[:, 0])
