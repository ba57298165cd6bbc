"""Choosing the next token: the most probable one, or a sampled one, for any vocabulary size."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from engram_bench.backends.torch.decoding import AT_ONCE, BLOCK, _choose
from engram_bench.backends.torch.device import answers_in

ROWS = AT_ONCE + 3
TEMPERATURE = 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [7, BLOCK, 3 * BLOCK + 5])
def test_a_draw_is_inverted_through_the_whole_distribution(vocabulary, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(ROWS, vocabulary, generator=generator) * 3).to(dtype)
    draws = np.random.default_rng(0).random(ROWS)
    draws[::5] = np.nan
    cumulative = (logits.double() / TEMPERATURE).softmax(-1).cumsum(-1).numpy()
    expected = [
        row.argmax() if np.isnan(u) else (c < u).sum() for row, c, u in zip(logits, cumulative, draws, strict=True)
    ]
    assert _choose(logits.clone(), np.arange(ROWS), TEMPERATURE, draws).tolist() == [int(token) for token in expected]


def test_draws_at_both_ends_stay_within_the_vocabulary():
    logits = torch.zeros(2, BLOCK + 1)
    assert _choose(logits, np.arange(2), 1.0, np.array([0.0, np.nextafter(1, 0)])).tolist() == [0, BLOCK]


def test_the_first_of_equals_is_the_most_probable():
    logits = torch.zeros(1, 3 * BLOCK)
    logits[0, [BLOCK + 3, BLOCK + 9, 2 * BLOCK]] = 1
    assert _choose(logits, np.array([0]), 1.0, np.array([np.nan])).tolist() == [BLOCK + 3]


@pytest.mark.parametrize(
    ("gigabytes", "found"),
    [(0, 32), (8, 128), (12, 128), (12.5, 256), (25, 512), (80, 1024), (200, 2048), (2000, 2048)],
)
def test_answers_decoded_together_follow_the_devices_memory_in_powers_of_two(gigabytes, found):
    assert answers_in(int(gigabytes * 1e9), token_bytes=23_040) == found


def test_a_processor_limited_to_avx2_computes_in_float32():
    line = "from engram_bench.backends.torch.device import pick_dtype; print(pick_dtype('cpu')[0])"
    found = subprocess.run(
        [sys.executable, "-c", line],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "torch.float32"
