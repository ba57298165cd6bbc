"""What an n-gram memory costs at every decoded token, by batch and by where its table lies.

    python benchmarks/memory_cost.py --device cuda --rows 10000000 --batches 1,32,256 --out cost.json

Every n-gram finds its rows, in the prompt and along the answer: the most a memory can cost, as a trained one finds few.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from engram_bench import backends, variants
from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.memory.addresses import Addresses, make_hasher
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.memory.keys import KeyIndex
from engram_bench.memory.torch import EngramLayer, decoder_layers
from engram_bench.prompts import Prompt, extend_windows, shared_prefix
from engram_bench.store import models

ROUNDS = 3  # each memory once a round, so that a machine that slows down slows all of them
TRAINED_ROWS = 100_000  # about what the default profile's training touches
NOTHING = np.empty(0, np.int64)


class OnHost(EngramLayer):
    """A layer whose table stays in host memory: rows travel to the device, in place of their numbers."""

    def slots_for(self, ids, windows):
        super().set_slots(torch.from_numpy(super().slots_for(ids, windows)))
        return NOTHING

    def set_slots(self, slots):
        """What is looked up is here already."""


def whole_memory(model: TorchModel, rows: int, kind: type[EngramLayer]) -> EngramAdapter:
    """The shape of the `engram` variant with about that many rows over all its tables, every one of them filled."""
    (_, variant) = variants.select("engram")
    count = len(decoder_layers(model.model))
    layers = sorted({min(layer, count - 1) for layer in variant.config.layers})
    tables = len(layers) * len(variant.config.orders) * variant.config.heads
    config = replace(variant.config, layers=layers, rows=rows // tables, span="text")
    hasher = make_hasher(config, compress_vocabulary(model.encoder.tokenizer), model.encoder.eos_id)
    held = {layer: np.arange(sum(map(sum, hasher.primes[layer]))) for layer in layers}
    memories = {}
    for layer, ids in held.items():
        memory = kind(config, layer, hasher, ids, model.model.config.hidden_size).eval()
        torch.nn.init.normal_(memory.table.data[1:], std=0.01)
        table = memory.table.data
        memories[layer] = memory.to(model.device)
        memory.fuse(model.model.dtype)
        if kind is OnHost:
            memory.table = torch.nn.Parameter(table)
    return EngramAdapter(
        Addresses(config, hasher, model.encoder.eos_id, KeyIndex((), max(config.orders)), held), memories
    )


@torch.inference_mode()
def seconds_a_token(model: TorchModel, adapter: EngramAdapter | None, prompts: Sequence[Prompt], tokens: int) -> float:
    """Seconds of a decoding step in which each prompt gets a token, the mean over `tokens` steps."""
    rows, nobody_draws = np.arange(len(prompts)), np.full(len(prompts), np.nan)
    with model.attached(adapter):
        prefix = shared_prefix(prompts)
        state = model.prefix_state(prompts[0], prefix)
        batch = model.begin(prompts, len(prompts), state, prefix, tokens + 1)
        chosen = batch.choose(rows, 1.0, nobody_draws)
        started = time.perf_counter()
        for _ in range(tokens):
            batch.advance(chosen, extend_windows(batch.windows, chosen))
            chosen = batch.choose(rows, 1.0, nobody_draws)  # brings the tokens to the host, so the device is done
        return (time.perf_counter() - started) / tokens


def measure(model: TorchModel, rows: int, batches: Sequence[int], tokens: int) -> list[dict[str, object]]:
    """A record for each batch and memory: seconds a step, tokens a second, and the overhead over no memory at all."""
    memories = {
        "none": None,
        f"{TRAINED_ROWS:,} rows on the device": whole_memory(model, TRAINED_ROWS, EngramLayer),
        f"{rows:,} rows on the device": whole_memory(model, rows, EngramLayer),
        f"{rows:,} rows on the host": whole_memory(model, rows, OnHost),
    }
    found = []
    for batch in batches:
        prompts = [model.encoder.prompt(f"What is stored under KEY {number}?") for number in range(batch)]
        times: dict[str, list[float]] = {name: [] for name in memories}
        for memory in memories.values():  # the first of a kind compiles and allocates
            seconds_a_token(model, memory, prompts, 2)
        for _ in range(ROUNDS):
            for name, memory in memories.items():
                times[name].append(seconds_a_token(model, memory, prompts, tokens))
        for name, own in times.items():
            overhead = statistics.median(a / b for a, b in zip(own, times["none"], strict=True)) - 1
            seconds = statistics.median(own)
            record = {"memory": name, "batch": batch, "seconds": seconds, "tokens_s": batch / seconds}
            found.append({**record, "overhead": overhead})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="as pytest's --engram-model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--rows", type=int, default=10**7, help="rows of all tables together")
    parser.add_argument("--batches", default="1,32,256", help="prompts decoded together")
    parser.add_argument("--tokens", type=int, default=64, help="steps that are timed")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    args = parser.parse_args()
    target = backends.find(args.device)
    model = TorchModel(models.resolve(args.model).folder, target.device)
    found = measure(model, args.rows, [int(batch) for batch in args.batches.split(",")], args.tokens)
    name = torch.cuda.get_device_name() if target.device == "cuda" else target.device
    machine = {"device": name, "dtype": model.dtype, "model": args.model, "versions": model.versions()}
    peak = model.peak_memory()
    args.out.write_text(json.dumps({**machine, "peak_memory": peak, "steps": found}, indent=1) + "\n", encoding="utf-8")
    rows = [[r["memory"], r["batch"], 1000 * r["seconds"], r["tokens_s"], 100 * r["overhead"]] for r in found]
    headers = ["memory", "batch", "ms a step", "tokens/s", "overhead, %"]
    print(f"{name}, {model.dtype}, {args.model}; most memory held {peak / 1e6:,.0f} MB")
    print(tabulate(rows, headers=headers, floatfmt=".1f", tablefmt="github"))


if __name__ == "__main__":
    main()
