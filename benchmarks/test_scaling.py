"""Time of a memory's forward by number of tokens and by table size, which may exceed the machine's memory.

Expected: constant in rows, linear in tokens; resident memory grows only with the rows read. ``pytest
benchmarks/test_scaling.py`` measures one size after another, so a slower phase of the machine distorts the comparison.
Run as a script, it measures the table sizes in turns.
"""

import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch
from test_hot_paths import CONFIG, HIDDEN, VOCABULARY

from engram_bench.memory.addresses import make_hasher
from engram_bench.memory.torch import EngramLayer
from engram_bench.run.speed import TABLE_ROWS, mapped_table

TEXTS = 100  # used in turns
TURNS = 400  # per table size


@contextmanager
def layer_of(rows):
    """A memory with `rows` rows per table, all of them in a memory-mapped file."""
    config = replace(CONFIG, rows=rows)
    hasher = make_hasher(config, np.arange(VOCABULARY), 2)
    with mapped_table(hasher, 2, config.width) as table:
        built = EngramLayer(config, 2, hasher, np.empty(0, np.int64), HIDDEN).eval()
        built.row_ids, built.table = None, torch.nn.Parameter(torch.from_numpy(table), requires_grad=False)
        yield built


@pytest.fixture(scope="module", params=TABLE_ROWS)
def layer(request):
    with layer_of(request.param) as built:
        yield built


def look_up_and_add(layer, tokens):
    texts = cycle(np.random.default_rng(0).integers(0, VOCABULARY, (TEXTS, 1, tokens, 9)))
    hidden = torch.randn(1, tokens, HIDDEN)

    @torch.inference_mode()
    def forward():
        windows = next(texts)
        layer.set_slots(torch.from_numpy(layer.slots_for(windows[..., 0], windows)))
        return layer(hidden)

    for _ in range(TEXTS):  # warm-up: loads the rows they read from a mapped table
        forward()
    return forward


def test_rows(benchmark, layer):
    benchmark.extra_info["table_bytes"] = layer.table.nbytes
    benchmark(look_up_and_add(layer, 1))


@pytest.mark.parametrize("tokens", [16, 64, 256, 1024, 4096])
def test_tokens(benchmark, tokens):
    hasher = make_hasher(CONFIG, np.arange(VOCABULARY), 2)
    rows = sum(prime for heads in hasher.primes[2] for prime in heads)
    benchmark(look_up_and_add(EngramLayer(CONFIG, 2, hasher, np.arange(rows), HIDDEN).eval(), tokens))


def main():
    with ExitStack() as stack:
        forwards = [look_up_and_add(stack.enter_context(layer_of(rows)), 1) for rows in TABLE_ROWS]
        times = np.zeros((TURNS, len(forwards)))
        for turn, size in np.ndindex(times.shape):
            started = time.perf_counter()
            forwards[size]()
            times[turn, size] = time.perf_counter() - started
    medians = 1e6 * np.median(times, axis=0)
    for rows, median in zip(TABLE_ROWS, medians, strict=True):
        print(f"{rows:>11,} rows: {median:6.1f} us")
    print(f"largest over smallest: {medians.max() / medians.min():.2f}")


if __name__ == "__main__":
    main()
