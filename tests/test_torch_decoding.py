"""Decoding in torch: the choice of the next token, and prompts after different turns in one batch."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from engram_bench.backends.decoding import Stem, begun
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.backends.torch.decoding import AT_ONCE, BLOCK, _choose
from engram_bench.backends.torch.device import answers_in
from tests.conftest import in_float32, make_checkpoint

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


@pytest.mark.parametrize("batch", [512, 3])
def test_prompts_after_different_turns_are_decoded_together_and_answered_as_each_by_itself(
    batch, tmp_path, monkeypatch
):
    model = in_float32(make_checkpoint(tmp_path))
    stems = [(), [("What is red?", "a colour")], [("KEY:abc", "blue"), ("Look up KEY:abd please", "green")]]
    texts = ["KEY:abc", "KEY:bcd", "What belongs to KEY:dex here?", "Look up KEY:abc"]
    prompts = [model.encoder.prompt(text, earlier=turns) for text in texts for turns in stems[: len(text) % 3 + 1]]
    prompts += prompts[-2:]
    limits = [n % 5 + 4 for n in range(len(prompts))]
    assert model.joins
    alone = [model.generate([prompt], most)[0] for prompt, most in zip(prompts, limits, strict=True)]
    monkeypatch.setattr(model, "batch_size", batch)
    begun = []
    monkeypatch.setattr(model, "begin", lambda *args: begun.append(args[2]) or TorchModel.begin(model, *args))
    assert model.generate(prompts, limits) == alone
    assert len(begun) == -(-len(prompts) // batch)
    assert max(map(len, begun)) > 1
    seeds = list(range(len(prompts)))
    drawn = model.generate(prompts, 6, seeds=seeds)
    assert drawn == [model.generate([prompt], 6, seeds=[n])[0] for n, prompt in enumerate(prompts)]


def test_prompts_that_are_a_stem_and_one_token_are_decoded_together(tmp_path):
    """No row has tokens of its own yet."""
    model = in_float32(make_checkpoint(tmp_path))
    prompts = []
    for text in ("KEY:abc", "Look up KEY:abd please"):
        whole = model.encoder.prompt("KEY:dex", earlier=[(text, "blue")])
        prompts += [
            replace(whole, ids=(*whole.ids[: whole.earlier], last), content=whole.content[: whole.earlier + 1])
            for last in (5, 6)
        ]
    stems = [
        Stem([at, at + 1], prompts[at].earlier, model.prefix_state(prompts[at], prompts[at].earlier)) for at in (0, 2)
    ]
    assert stems[0].tokens != stems[1].tokens
    with torch.inference_mode():
        found = model.begin(prompts, 4, stems, 3).logits
        alone = torch.cat([begun(model, [prompt], 3).logits for prompt in prompts])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
