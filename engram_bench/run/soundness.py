"""Checks that a model's answers depend on nothing but the question. As answers are, they are kept from run to run."""

from __future__ import annotations

from collections.abc import Sequence

from engram_bench.records import BASELINE, Record
from engram_bench.run.bench import Bench
from engram_bench.run.speed import NEW_TOKENS

FEW_TOKENS = 8  # of answers that are only compared with each other
BATCHES = (1, 3)


def detached(bench: Bench, variant: str, texts: Sequence[str]) -> bool:
    """Whether the model answers as before, token for token, once a variant was attached and detached."""
    prompts = [bench.backend.encoder.prompt(text) for text in texts]

    def measure() -> Record:
        before = bench.backend.generate(prompts, FEW_TOKENS)
        with bench.backend.attached(bench.adapter(variant)):
            bench.backend.generate(prompts, 1)
        return {"same": bench.backend.generate(prompts, FEW_TOKENS) == before}

    return bool(bench.measured("detached", variant, texts, measure)["same"])


def same_in_batches(bench: Bench, texts: Sequence[str]) -> dict[str, float]:
    """Share of the baseline's answers that are the same in smaller batches as in one, by the size of these batches."""
    prompts, generate = [bench.backend.encoder.prompt(text) for text in texts], bench.backend.generate

    def apart(size: int) -> list[list[int]]:
        return [a for i in range(0, len(prompts), size) for a in generate(prompts[i : i + size], FEW_TOKENS)]

    def measure() -> Record:
        together = generate(prompts, FEW_TOKENS)
        same = {size: [a == b for a, b in zip(together, apart(size), strict=True)] for size in BATCHES}
        return {"same": {str(size): sum(found) / len(found) for size, found in same.items()}}

    return dict(bench.measured("batches", BASELINE, texts, measure)["same"])


def streamed(bench: Bench, variant: str) -> tuple[list[int], list[int]]:
    """What `stream`, which is timed, gives beyond the end of an answer; and the answer by `generate`."""
    text = bench.settings.patterns.first_seen()[1]
    prompt = bench.backend.encoder.prompt(text)

    def measure() -> Record:
        with bench.backend.attached(bench.adapter(variant)):
            (answer,) = bench.backend.generate([prompt], NEW_TOKENS)
            return {"streamed": list(bench.backend.stream(prompt, NEW_TOKENS, ignore_eos=True)), "answer": answer}

    found = bench.measured("streamed", variant, [text], measure)
    return found["streamed"], found["answer"]
