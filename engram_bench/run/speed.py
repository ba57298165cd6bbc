"""Speed of each variant at batch 1, as a user experiences it, and look-up times; the candidates take turns."""

from __future__ import annotations

import mmap
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engram_bench.backends.base import Adapter, Backend
from engram_bench.memory import addresses
from engram_bench.memory.hashing import Int64Array, NgramHasher
from engram_bench.prompts import Prompt
from engram_bench.variants.configs import EngramConfig

TABLE_ROWS = tuple(10**n for n in range(3, 9))  # nominal rows of one table
TRAINED_NGRAMS, LOOKUPS = 10_000, 200
ROUNDS = 3  # each round measures every variant once, so a machine that slows down affects all alike
NEW_TOKENS = 16


@dataclass(frozen=True)
class Speed:
    """Speed at batch 1; medians over the rounds.

    Attributes:
        prefill_tokens_s: prompt tokens, template included, divided by `ttft_s`.
        decode_tokens_s: new tokens per second, after the first.
        ttft_s: seconds to the first token.
        overhead: decoding time per token relative to the baseline's in the same round, minus 1.
    """

    prefill_tokens_s: float
    decode_tokens_s: float
    ttft_s: float
    overhead: float


def measure(backend: Backend, adapters: Mapping[str, Adapter | None], prompt: Prompt) -> dict[str, Speed]:
    """Speed by variant; the first of `adapters` is the baseline for the overheads."""
    first: dict[str, list[float]] = {name: [] for name in adapters}
    each: dict[str, list[float]] = {name: [] for name in adapters}
    for _ in range(ROUNDS):
        for name, adapter in adapters.items():
            with backend.attached(adapter):
                next(backend.stream(prompt, 1, ignore_eos=True))  # warm-up
                started = time.perf_counter()
                answer = backend.stream(prompt, NEW_TOKENS, ignore_eos=True)
                next(answer)
                begun = time.perf_counter()
                more = sum(1 for _ in answer)
                first[name].append(begun - started)
                each[name].append((time.perf_counter() - begun) / more)
    baseline = next(iter(each.values()))
    median = statistics.median
    return {
        name: Speed(
            prefill_tokens_s=len(prompt.ids) / median(first[name]),
            decode_tokens_s=1 / median(each[name]),
            ttft_s=median(first[name]),
            overhead=median(own / base for own, base in zip(each[name], baseline, strict=True)) - 1,
        )
        for name in adapters
    }


def lookup_times(config: EngramConfig, compressed_ids: Int64Array, seed: int = 0) -> list[dict[str, float]]:
    """Median seconds to find the rows of one token's n-grams in one layer, by table size.

    Returns:
        One dictionary per size. "rows": rows per table. "seconds": hashing plus search among the rows that training
        touched, equally many for every size. "mapped_seconds": hashing plus reading the rows from a memory-mapped file
        of all tables. "mapped_bytes": size of that file, which may far exceed the memory; the pages read are resident,
        because a first pass has read them.
    """
    rng = np.random.default_rng(seed)
    size, vocabulary = max(config.orders), len(compressed_ids)
    width = size + 1  # the last column is the key's number, see `prompts.ngram_windows`
    trained = [rng.integers(0, vocabulary, (TRAINED_NGRAMS, width))]
    asked = rng.integers(0, vocabulary, (LOOKUPS, 1, 1, width))
    layer, sizes = config.layer_ids[0], []
    ways: list[Callable[[Int64Array], object]] = []
    with ExitStack() as files:
        for rows in TABLE_ROWS:
            sized = addresses.make_hasher(replace(config, rows=rows), compressed_ids, pad_id=0)
            touched = addresses.touched_rows(sized, layer, trained)
            table = files.enter_context(mapped_table(sized, layer, config.width))
            ways += [partial(addresses.slots, sized, layer, touched), partial(_read, sized, layer, table)]
            sizes.append(table.nbytes)
        for _ in range(2):  # the first pass loads the pages
            times = [[_seconds(way, window) for way in ways] for window in asked]  # sizes take turns
    medians = np.median(times, axis=0).reshape(len(TABLE_ROWS), 2).tolist()
    return [
        {"rows": rows, "seconds": seconds, "mapped_seconds": mapped, "mapped_bytes": count}
        for rows, (seconds, mapped), count in zip(TABLE_ROWS, medians, sizes, strict=True)
    ]


def _read(hasher: NgramHasher, layer: int, table: NDArray[np.float32], window: Int64Array) -> NDArray[np.float32]:
    """Read an n-gram's rows from a table that holds all rows."""
    return table[addresses.slots(hasher, layer, None, window)]


def _seconds(call: Callable[[Int64Array], object], window: Int64Array) -> float:
    started = time.perf_counter()
    call(window)
    return time.perf_counter() - started


@contextmanager
def mapped_table(hasher: NgramHasher, layer: int, width: int) -> Iterator[NDArray[np.float32]]:
    """All tables of a layer as zeros, float32 [1 + rows, width], in a memory-mapped sparse file; removed on exit."""
    rows = 1 + sum(prime for heads in hasher.primes[layer] for prime in heads)
    with tempfile.TemporaryFile() as file:
        file.truncate(rows * width * 4)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)  # access is random, so reading ahead is wasted
        yield np.frombuffer(mapped, np.float32).reshape(rows, width)
