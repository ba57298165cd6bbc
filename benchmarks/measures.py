"""The measurements. Each function gives the sides one kind of work and returns plain data for the results file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from sides import Job, Result, Side, take_turns

from engram_bench.data.items import Example
from engram_bench.prompts import PromptEncoder
from engram_bench.variants import select

NEW_TOKENS = 32
SAMPLES, TEMPERATURE = 5, 0.8
EPOCHS, MOST_EPOCHS = 2, 8
FOUR_BIT_PROMPTS = 64
LOOP_PROMPTS = 16  # fewer than for the others, because each takes seconds
SAMPLED_PROMPTS = 64
BATCH_SIZES = (32, 64, 128, 256)  # tried for lm-eval, each on as many prompts as the largest size
EXACT_PROMPTS = 48  # compared in float32
OVERHEAD_PROMPTS = 128  # enough to include some with long answers

T = TypeVar("T")
Record = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """The input of all sides, and the number of repeats."""

    encoder: PromptEncoder
    prompts: Sequence[str]
    examples: Sequence[Example]
    trained: int  # number of examples for the training measurement
    repeats: int


def spread(rows: Sequence[T], count: int) -> list[T]:
    """Pick `count` rows at even distances, or all if there are fewer."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def versus(found: Mapping[str, Sequence[Result]], ours: str, theirs: str) -> Record:
    """Median rates per second of two sides, and their ratio; `found` comes from `take_turns`."""
    rates = {name: statistics.median(r["done"] / r["seconds"] for r in found[name]) for name in (ours, theirs)}
    return {
        "ratio": rates[ours] / rates[theirs],
        "per_second": {"ours": rates[ours], "theirs": rates[theirs]},
        "done": {"ours": found[ours][0]["done"], "theirs": found[theirs][0]["done"]},
        "seconds": {"ours": _seconds(found[ours]), "theirs": _seconds(found[theirs])},
    }


def _seconds(results: Sequence[Result]) -> list[float]:
    return [result["seconds"] for result in results]


# --- evaluation -------------------------------------------------------------------------------------------------------


def generation(work: Work, prompts: Sequence[str], samples: int = 0, new_tokens: int = NEW_TOKENS) -> Job:
    """A job that answers prompts: greedily, or with `samples` sampled answers each."""
    template = work.encoder.tokenizer.apply_chat_template
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return {
        "kind": "generate",
        "prompts": prompts,
        "rendered": [template(message, add_generation_prompt=True, tokenize=False) for message in messages],
        "max_new_tokens": new_tokens,
        "samples": samples,
        "temperature": TEMPERATURE,
    }


def evaluation(work: Work, ours: Side, lm_eval: Side, loop: Side) -> Record:
    """Answers per second: greedy against both peers, sampled against lm-eval; also the hardware limit."""
    tried = _try_batch_sizes(work, lm_eval)
    size = {"batch_size": min(tried, key=lambda size: tried[size])}
    every, few = generation(work, work.prompts), generation(work, spread(work.prompts, LOOP_PROMPTS))
    ours.do(every)  # warm-up; lm-eval is already warm
    loop.do(generation(work, work.prompts[:1]))
    greedy = take_turns(
        {"ours": lambda: ours.do(every), "lm-eval": lambda: lm_eval.do(every | size), "loop": lambda: loop.do(few)},
        work.repeats,
    )
    drawn = generation(work, spread(work.prompts, SAMPLED_PROMPTS), SAMPLES)
    sampled = take_turns({"ours": lambda: ours.do(drawn), "lm-eval": lambda: lm_eval.do(drawn | size)}, work.repeats)
    texts = dict(zip(work.prompts, greedy["ours"][0]["texts"], strict=True))
    return {
        "evaluation_vs_lm_eval": versus(greedy, "ours", "lm-eval")
        | {"same_text": _same(texts, every, greedy["lm-eval"][0]), **size, "batch_sizes_tried": tried},
        "evaluation_vs_loop": versus(greedy, "ours", "loop") | {"same_text": _same(texts, few, greedy["loop"][0])},
        "evaluation_k5_vs_lm_eval": versus(sampled, "ours", "lm-eval") | size,
        "limit": _limit(work, ours, greedy["ours"]),
    }


def four_bit_weights(work: Work, ours: Side, llama_cpp: Side) -> Record:
    """Answers per second against llama.cpp, one prompt at a time: with all prompts at once here, and one at a time."""
    few = generation(work, spread(work.prompts, FOUR_BIT_PROMPTS))
    ours.do(few)  # warm-up
    llama_cpp.do(generation(work, work.prompts[:1]))
    found = take_turns(
        {
            "at once": lambda: ours.do(few),
            "alone": lambda: ours.do(few | {"alone": True}),
            "llama.cpp": lambda: llama_cpp.do(few),
        },
        work.repeats,
    )
    texts = dict(zip(few["prompts"], found["at once"][0]["texts"], strict=True))
    same = _same(texts, few, found["llama.cpp"][0])
    return {
        "evaluation_vs_llama_cpp": versus(found, "at once", "llama.cpp") | {"same_text": same},
        "one_at_a_time_vs_llama_cpp": versus(found, "alone", "llama.cpp"),
    }


def _try_batch_sizes(work: Work, lm_eval: Side) -> dict[int, float]:
    """Seconds of lm-eval at each batch size."""
    lm_eval.do(generation(work, work.prompts[:8]) | {"batch_size": 8})  # warm-up
    job = generation(work, spread(work.prompts, max(BATCH_SIZES)))
    return {size: lm_eval.do({**job, "batch_size": size})["seconds"] for size in BATCH_SIZES}


def same_in_float32(work: Work, ours: Side, lm_eval: Side) -> dict[str, int]:
    """Like `_same`, but both sides run in float32, where rounding hardly affects an answer."""
    job = generation(work, spread(work.prompts, EXACT_PROMPTS))
    texts = dict(zip(job["prompts"], ours.do(job)["texts"], strict=True))
    return _same(texts, job, lm_eval.do({**job, "batch_size": EXACT_PROMPTS}))


def _same(texts: Mapping[str, str], job: Job, theirs: Result) -> dict[str, int]:
    """Count the answers of another side that equal ours exactly. Rounding in bfloat16 can make them differ."""
    pairs = zip(job["prompts"], theirs["texts"], strict=True)
    return {"same": sum(texts[prompt] == text for prompt, text in pairs), "of": len(theirs["texts"])}


def _limit(work: Work, ours: Side, greedy: Sequence[Result]) -> Record:
    """The evaluation's share of the machine's matrix-product rate.

    It counts only products with weights, and only for necessary tokens: the shared prefix once, all other prompt
    tokens, and all answer tokens fed back. It ignores attention and everything else.
    """
    rate = ours.do({"kind": "matrix_rate"})
    first = generation(work, work.prompts, new_tokens=1)
    prefill = statistics.median(ours.do(first)["seconds"] for _ in range(work.repeats))
    decode = statistics.median(_seconds(greedy)) - prefill
    prompt_tokens, decoded_tokens = greedy[0]["prompt_tokens"], greedy[0]["decoded_tokens"]
    needed = {
        "prefill": (2 * (rate["layers"] * prompt_tokens + rate["head"] * len(work.prompts)), prompt_tokens, prefill),
        "decode": (2 * (rate["layers"] + rate["head"]) * decoded_tokens, decoded_tokens, decode),
    }
    return {
        "matrix_gflops": rate["flops"] / 1e9,
        **{
            name: {"gflop": flop / 1e9, "tokens": tokens, "seconds": seconds, "share": flop / seconds / rate["flops"]}
            for name, (flop, tokens, seconds) in needed.items()
        },
    }


# --- training ---------------------------------------------------------------------------------------------------------


def training(work: Work, ours: Side, peer: Side, variant: str) -> Record:
    """Examples per second of one variant's training, each side's final loss, and our time to reach theirs."""
    job = _training_job(work, variant, EPOCHS)
    found = take_turns({"ours": lambda: ours.do(job), peer.name: lambda: peer.do(job)}, work.repeats)
    losses = {"ours": found["ours"][0]["loss"], "theirs": found[peer.name][0]["loss"]}
    reached = to_their_loss(work, ours, variant, losses["theirs"], statistics.median(_seconds(found[peer.name])))
    return versus(found, "ours", peer.name) | {"loss_of_last_epoch": losses} | reached


def to_their_loss(work: Work, ours: Side, variant: str, loss: float, seconds: float) -> Record:
    """How many times as fast we reach a peer's loss, and in how many epochs; empty after `MOST_EPOCHS` without it."""
    for epochs in range(1, MOST_EPOCHS + 1):
        result = ours.do(_training_job(work, variant, epochs))
        if result["loss"] <= loss:
            return {"to_their_loss": {"ratio": seconds / result["seconds"], "epochs": epochs, "loss": result["loss"]}}
    return {}


def _training_job(work: Work, name: str, epochs: int) -> Job:
    variant = next(variant for variant in select(name) if variant.name == name)
    assert variant.config is not None
    assert variant.training is not None
    examples = spread(work.examples, work.trained)
    return {
        "kind": "train",
        "variant": name,
        "config": asdict(variant.config),
        "training": asdict(variant.training) | {"epochs": epochs},
        "examples": [[example.prompt, example.answer, example.key] for example in examples],
        "tokens": [[work.encoder.prompt(e.prompt).ids, work.encoder.answer(e.answer)] for e in examples],
    }


# --- overhead ---------------------------------------------------------------------------------------------------------


def overhead(work: Work, ours: Side) -> Record:
    """Time that an attached n-gram memory adds to prefill and decoding; see `overhead` in peers/ours.py."""
    rows = [[example.prompt, example.answer, example.key] for example in work.examples]
    asked = spread(rows, OVERHEAD_PROMPTS)
    job = {"kind": "overhead", "examples": rows, "asked": asked, "max_new_tokens": NEW_TOKENS, "repeats": work.repeats}
    return ours.do(job)
