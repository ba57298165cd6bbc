"""Time that an n-gram memory adds per decoded token, by batch size and by location of its table.

    python benchmarks/memory_cost.py --device cuda --rows 100000,10000000 --batches 1,32,256 --out cost.json

Every n-gram of prompt and answer finds its rows. This is the maximum cost: a trained memory finds few.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from engram_bench import backends, variants
from engram_bench.backends import decoding
from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.memory.addresses import Addresses, make_hasher
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.memory.keys import KeyIndex
from engram_bench.memory.torch import EngramLayer, decoder_layers
from engram_bench.prompts import Prompt, extend_windows
from engram_bench.store import models

ROUNDS = 3  # each runs every memory once, so that a slower phase of the machine affects all
FILLING_ROWS = 1 << 16  # different rows, repeated through a table
NOTHING = np.empty(0, np.int64)


class OnHost(EngramLayer):
    """A layer whose table stays in host memory: it copies rows to the device instead of row numbers."""

    def slots_for(self, ids, windows):
        super().set_slots(torch.from_numpy(super().slots_for(ids, windows)))
        return NOTHING

    def set_slots(self, slots, earlier=None):
        """Do nothing: `slots_for` has already set the slots."""


def whole_memory(model: TorchModel, rows: int, kind: type[EngramLayer]) -> EngramAdapter:
    """A memory shaped like the `engram-keyed` variant, with about `rows` rows in all tables together, all filled."""
    (_, variant) = variants.select("engram-keyed")
    count = len(decoder_layers(model.model))
    layers = variant.config.for_depth(count).layer_ids
    tables = len(layers) * len(variant.config.orders) * variant.config.heads
    config = replace(variant.config, layers=layers, rows=rows // tables, span="text", acts="everywhere")
    hasher = make_hasher(config, compress_vocabulary(model.encoder.tokenizer), model.encoder.eos_id)
    held = {layer: np.arange(sum(map(sum, hasher.primes[layer]))) for layer in layers}
    filling = 0.01 * torch.randn(FILLING_ROWS, config.width)
    memories = {}
    for layer, ids in held.items():
        memory = kind(config, layer, hasher, ids, model.model.config.hidden_size).eval()
        for some in memory.table.data[1:].split(len(filling)):  # 10 million rows of random numbers take a minute
            some.copy_(filling[: len(some)])
        table = memory.table.data
        memories[layer] = memory.to(model.device)
        memory.fuse(model.model.dtype)
        if kind is OnHost:
            memory.table = torch.nn.Parameter(table)
    return EngramAdapter(
        Addresses(config, hasher, model.encoder.eos_id, KeyIndex(), held, np.empty(0, np.uint8)), memories
    )


@torch.inference_mode()
def seconds_a_token(model: TorchModel, adapter: EngramAdapter | None, prompts: Sequence[Prompt], tokens: int) -> float:
    """Mean seconds per decoding step over `tokens` steps; each step adds one token to every prompt."""
    rows, greedy = np.arange(len(prompts)), np.full(len(prompts), np.nan)
    with model.attached(adapter):
        batch = decoding.begun(model, prompts, tokens + 1)
        chosen = batch.choose(rows, 1.0, greedy)
        started = time.perf_counter()
        for _ in range(tokens):
            batch.advance(chosen, extend_windows(batch.windows, chosen))
            chosen = batch.choose(rows, 1.0, greedy)  # copies the tokens to the host, which waits for the device
        return (time.perf_counter() - started) / tokens


def measure(
    model: TorchModel, rows: Sequence[int], batches: Sequence[int], tokens: int
) -> Iterator[list[dict[str, object]]]:
    """For each batch size, one record per memory: seconds per step, tokens per second, overhead over no memory."""
    memories: dict[str, EngramAdapter | None] = {"none": None}
    for count in rows:
        memories[f"{count:,} rows on the device"] = whole_memory(model, count, EngramLayer)
        memories[f"{count:,} rows on the host"] = whole_memory(model, count, OnHost)
    for batch in batches:
        prompts = [model.encoder.prompt(f"What is stored under KEY {number}?") for number in range(batch)]
        times: dict[str, list[float]] = {name: [] for name in memories}
        for memory in memories.values():  # warm-up: the first call compiles and allocates
            seconds_a_token(model, memory, prompts, 2)
        for _ in range(ROUNDS):
            for name, memory in memories.items():
                times[name].append(seconds_a_token(model, memory, prompts, tokens))
        found = []
        for name, own in times.items():
            overhead = statistics.median(a / b for a, b in zip(own, times["none"], strict=True)) - 1
            seconds = statistics.median(own)
            record = {"memory": name, "batch": batch, "seconds": seconds, "tokens_s": batch / seconds}
            found.append({**record, "overhead": overhead})
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="model, as for pytest's --engram-model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--rows", default="100000,10000000", help="numbers of rows in all tables together")
    parser.add_argument("--batches", default="1,32,256", help="batch sizes, separated by commas")
    parser.add_argument("--tokens", type=int, default=64, help="number of timed steps")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    target = backends.find(args.device)
    model = TorchModel(models.resolve(args.model).folder, target.device)
    rows, batches = ([int(number) for number in text.split(",")] for text in (args.rows, args.batches))
    name = torch.cuda.get_device_name() if target.device == "cuda" else target.device
    machine = {"device": name, "dtype": model.dtype, "model": args.model, "versions": model.versions()}
    found: list[dict[str, object]] = []
    for records in measure(model, rows, batches, args.tokens):  # written at once: the next batch may not be reached
        found += records
        peak = model.peak_memory()
        text = json.dumps({**machine, "peak_memory": peak, "steps": found}, indent=1)
        args.out.write_text(text + "\n", encoding="utf-8")
    table = [[r["memory"], r["batch"], 1000 * r["seconds"], r["tokens_s"], 100 * r["overhead"]] for r in found]
    headers = ["memory", "batch", "ms a step", "tokens/s", "overhead, %"]
    print(f"{name}, {model.dtype}, {args.model}; peak memory {peak / 1e6:,.0f} MB")
    print(tabulate(table, headers=headers, floatfmt=".1f", tablefmt="github"))


if __name__ == "__main__":
    main()
