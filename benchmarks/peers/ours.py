"""This project's side: the jobs that all sides do, on its backend, and jobs that only this side does."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from serve import Job, Result, serve

from engram_bench.backends.torch.backend import TorchModel
from engram_bench.data.items import Example
from engram_bench.prompts import Prompt
from engram_bench.variants import Variant, select

MATRIX = 2048
ROWS = 32  # prompts of the larger batch that measures overhead
DECODE_ROUNDS = PREFILL_ROUNDS = 10  # per repeat

folder, dtype = sys.argv[1:]
model = TorchModel(Path(folder), "cpu")
model.model.to(getattr(torch, dtype))  # float32 to compare texts; otherwise the backend's own dtype


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def generate(job: Job) -> Result:
    """Text in, text out: all prompts at once, or one after the other if the job says `alone`.

    `prompt_tokens` and `decoded_tokens` count the tokens that the model must compute for all at once.
    """
    count, limit = job["samples"], job["max_new_tokens"]
    seeds = [seed for _ in job["prompts"] for seed in range(count)] if count else None

    def answers() -> tuple[list[Prompt], list[list[int]], list[str]]:
        prompts = [model.encoder.prompt(text) for text in job["prompts"]]
        asked = [prompt for prompt in prompts for _ in range(count or 1)]
        if job.get("alone"):
            tokens = [model.generate([prompt], limit)[0] for prompt in asked]
        else:
            tokens = model.generate(asked, limit, seeds=seeds, temperature=job["temperature"])
        return prompts, tokens, [model.encoder.decode(ids) for ids in tokens]

    seconds, (prompts, tokens, texts) = timed(answers)
    beginnings = {prompt.ids[:length] for prompt in prompts for length in range(1, len(prompt.ids) + 1)}
    return {
        "seconds": seconds,
        "done": len(texts),
        "texts": texts,
        "prompt_tokens": len(beginnings),
        "decoded_tokens": sum(min(len(ids), limit - 1) for ids in tokens),
    }


def train(job: Job) -> Result:
    """Times everything: tokenizing, training, and saving the adapter."""
    variant, examples = named(job["variant"], job["training"]["epochs"]), examples_of(job["examples"])
    with tempfile.TemporaryDirectory() as folder:
        seconds, training = timed(lambda: model.train(variant, examples, 0, Path(folder), lambda *_: None))
    done = len(examples) * len(training.losses)
    return {"seconds": seconds, "done": done, "loss": training.losses[-1]}


def named(name: str, epochs: int) -> Variant:
    """A built-in variant, with this number of training epochs."""
    variant = next(variant for variant in select(name) if variant.name == name)
    assert variant.training is not None
    return replace(variant, training=replace(variant.training, epochs=epochs))


def examples_of(rows: Sequence[tuple[str, str, Sequence[int]]]) -> list[Example]:
    return [Example(prompt, answer, (start, end)) for prompt, answer, (start, end) in rows]


def matrix_rate(job: Job) -> Result:
    """FLOP/s of a large matrix product in the model's dtype, and the model's multiplications per token."""
    a, b = (torch.randn(MATRIX, MATRIX, dtype=model.model.dtype) for _ in range(2))
    seconds = statistics.median(timed(lambda: a @ b)[0] for _ in range(15))
    head = model.model.get_output_embeddings().weight.numel()
    return {"flops": 2 * MATRIX**3 / seconds, "layers": model.parameters - head, "head": head}


def overhead(job: Job) -> Result:
    """Time that an attached n-gram memory adds, as a fraction of the baseline's time in the same round."""
    limit, repeats = job["max_new_tokens"], job["repeats"]
    adapter, prompts = memory_that_changes_nothing(job)
    found = {}
    for rows in (1, ROWS):
        prefill, decode = partial(prefill_seconds, prompts[:rows]), partial(decode_seconds, prompts[:rows], limit)
        found[f"decode_b{rows}"] = added(adapter, decode, DECODE_ROUNDS * repeats)
        found[f"prefill_b{rows}"] = added(adapter, prefill, PREFILL_ROUNDS * repeats)
    return found


def prefill_seconds(prompts: Sequence[Prompt]) -> float:
    return timed(lambda: model.generate(prompts, 1))[0]


def decode_seconds(prompts: Sequence[Prompt], limit: int) -> float:
    return timed(lambda: model.generate(prompts, limit))[0] - prefill_seconds(prompts)


def added(adapter: Any, measure: Callable[[], float], rounds: int) -> Result:
    """Medians over the rounds, after one round of warm-up."""
    seconds: dict[str, list[float]] = {"baseline": [], "engram": []}
    for _ in range(rounds + 1):
        for name, on in (("baseline", None), ("engram", adapter)):
            with model.attached(on):
                seconds[name].append(measure())
    pairs = list(zip(seconds["baseline"][1:], seconds["engram"][1:], strict=True))
    return {
        "overhead": statistics.median(own / base for base, own in pairs) - 1,
        "baseline_seconds": statistics.median(base for base, _ in pairs),
        "engram_seconds": statistics.median(own for _, own in pairs),
    }


def memory_that_changes_nothing(job: Job) -> tuple[Any, list[Prompt]]:
    """An n-gram memory that finds a row at every token but adds zero, and prompts with answers of full length.

    So baseline and memory decode the same text. The memory's examples include the baseline's own answers, so every
    look-up finds a row. It is untrained, so its rows are zero.
    """
    limit, candidates = job["max_new_tokens"], examples_of(job["asked"])
    prompts = [model.encoder.prompt(example.prompt) for example in candidates]
    long = [i for i, tokens in enumerate(model.generate(prompts, limit)) if len(tokens) == limit][:ROWS]
    assert len(long) == ROWS, f"{len(long)} of {len(prompts)} answers are {limit} tokens long, {ROWS} are needed"
    asked = [prompts[i] for i in long]
    answers = model.generate(asked, limit)
    own = [replace(candidates[i], answer=model.encoder.decode(ids)) for i, ids in zip(long, answers, strict=True)]
    adapter = untrained("engram-keyed", [*examples_of(job["examples"]), *own])
    with model.attached(adapter):
        assert model.generate(asked, limit) == answers, "an empty memory changed an answer"
    return adapter, asked


def untrained(name: str, examples: Sequence[Example]) -> Any:
    variant = named(name, epochs=0)
    with tempfile.TemporaryDirectory() as folder:
        model.train(variant, examples, 0, Path(folder), lambda *_: None)
        return model.load_adapter(variant, Path(folder))


JOBS = {"generate": generate, "train": train, "matrix_rate": matrix_rate, "overhead": overhead}
serve(lambda job: JOBS[job["kind"]](job), ("engram-bench", "torch", "transformers", "peft"))
