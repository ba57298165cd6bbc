"""Where the time of one training step and of one decoding step goes, by torch's profiler; and their speed without it.

    python benchmarks/gpu_profile.py --device cuda --out profile.json

The table of operations is printed, and written to the JSON file too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes import commit
from torch.profiler import ProfilerActivity, profile

from engram_bench import backends, shipped, variants
from engram_bench.backends import decoding
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.data import patterns
from engram_bench.prompts import extend_windows
from engram_bench.store import models

WARM_UP, TIMED = 3, 8  # steps; one more is profiled
BATCH = 16  # examples of a training step
OPERATIONS = 20  # lines of a table


@contextmanager
def profiled(device: str, found: dict[str, Any]) -> Iterator[None]:
    """Profile the block; put its operations, the most expensive first, into `found` as a table."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, record_shapes=True) as seen:
        yield
        synchronize(device)
    order = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found["operations"] = seen.key_averages().table(sort_by=order, row_limit=OPERATIONS, max_name_column_width=60)


def synchronize(device: str) -> None:
    """Wait until the device has done everything that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def training_step(model: TorchModel, name: str, **changes: Any) -> dict[str, Any]:
    """Seconds of a step of a built-in variant's training, and its profile; the adapter is thrown away.

    Args:
        model: the model.
        name: of the variant.
        changes: fields of its config that differ.
    """
    (_, variant) = variants.select(name)
    assert variant.config
    assert variant.training
    variant = replace(variant, config=replace(variant.config, **changes))
    examples = patterns.load(shipped.PATTERNS).training_examples()[: BATCH * (WARM_UP + TIMED + 1)]
    training = replace(variant.training, batch_size=BATCH, epochs=1, steps=())
    ends: list[float] = []
    told = ", ".join([name, *(f"{field} {value}" for field, value in changes.items())])
    found: dict[str, Any] = {"step": f"training {told}", "batch": BATCH}
    profiler = profiled(model.device, found)

    def progress(_: str, done: int, __: int) -> None:
        synchronize(model.device)
        ends.append(time.perf_counter())
        if done == WARM_UP + TIMED:
            profiler.__enter__()
        elif done == WARM_UP + TIMED + 1:
            profiler.__exit__(None, None, None)

    with tempfile.TemporaryDirectory() as folder:
        model.train(replace(variant, training=training), examples, 0, Path(folder), progress)
    seconds = statistics.median(np.diff(ends[WARM_UP - 1 : WARM_UP + TIMED]).tolist())
    return {**found, "seconds": seconds, "per_second": f"{BATCH / seconds:.1f} examples"}


@torch.inference_mode()
def decoding_step(model: TorchModel, batch: int) -> dict[str, Any]:
    """Seconds of one more token of `batch` texts without an adapter, and the step's profile."""
    prompts = [model.encoder.prompt(f"What is stored under KEY {number}?") for number in range(batch)]
    rows, greedy = np.arange(batch), np.full(batch, np.nan)
    texts = decoding.begun(model, prompts, WARM_UP + TIMED + 2)
    chosen, ends = texts.choose(rows, 1.0, greedy), []

    def step() -> None:
        nonlocal chosen
        texts.advance(chosen, extend_windows(texts.windows, chosen))
        chosen = texts.choose(rows, 1.0, greedy)  # copies the tokens to the host, which waits for the device
        ends.append(time.perf_counter())

    for _ in range(WARM_UP + TIMED):
        step()
    found: dict[str, Any] = {"step": "decoding", "batch": batch}
    with profiled(model.device, found):
        step()
    seconds = statistics.median(np.diff(ends[WARM_UP - 1 : WARM_UP + TIMED]).tolist())
    return {**found, "seconds": seconds, "per_second": f"{batch / seconds:.1f} tokens"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="model, as for pytest's --engram-model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--training", action="store_true", help="only the training steps")
    args = parser.parse_args()
    target = backends.find(args.device, "peft")
    model = TorchModel(models.resolve(args.model).folder, target.device)
    steps: list[dict[str, Any]] = []
    measures = [*(partial(decoding_step, model, batch) for batch in (1, 256) if not args.training)]
    measures += [partial(training_step, model, name) for name in ("lora", "engram", "engram-keyed")]
    measures.append(partial(training_step, model, "lora", first_layer=0))  # as `engram`, from the first layers on
    for measure in measures:
        found = measure()
        steps.append(found)
        print(f"{found['step']}, batch {found['batch']}: {1000 * found['seconds']:.1f} ms, {found['per_second']}/s")
        print(found["operations"])
        record = {
            "device": target.device,
            "dtype": model.dtype,
            "commit": commit(),
            "peak_memory": model.peak_memory(),
            "steps": steps,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")  # the next may not be reached


if __name__ == "__main__":
    main()
