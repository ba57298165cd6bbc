"""Collateral: what an adapter changes where nothing was to be learned, and that taking it off undoes all of it."""

from collections.abc import Sequence

import pytest

from engram_bench.data import prompt_sets
from engram_bench.run.bench import Bench
from engram_bench.variants import EngramConfig


def is_keyed(bench: Bench, variant: str) -> bool:
    """Whether an adapter acts where it finds a stored key and nowhere else; any other acts on every prompt."""
    config = bench.variant(variant).config
    return isinstance(config, EngramConfig) and not config.acts_on_text


def without_key(bench: Bench, variant: str, prompts: Sequence[str]) -> list[str]:
    """The prompts in which a keyed memory finds no stored key."""
    span, encoder = bench.adapter(variant).span, bench.backend.encoder
    return [prompt for prompt in prompts if span(encoder.prompt(prompt)) is None]


def test_unrelated_text(bench: Bench, variant: str, control_prompts: list[str]) -> None:
    """Recorded for the report. A keyed memory changes nothing, to the bit; any other adapter moves the model."""
    found = bench.divergence(variant, control_prompts)
    if not is_keyed(bench, variant):
        assert found.kl_mean > 0, "the adapter is not on the model, or its training changed nothing"
    elif bench.settings.shipped_patterns or without_key(bench, variant, control_prompts) == control_prompts:
        assert (found.kl_max, found.top1_unchanged) == (0, 1)
    else:
        pytest.skip("recorded only: a control prompt names a key of these patterns")


def test_stored_inputs_in_passing(bench: Bench, variant: str, control_prompts: list[str]) -> None:
    """Recorded for the report. Where a keyed memory finds no key, the answer is the baseline's to the letter."""
    asked = prompt_sets.mentions(bench.settings.patterns, len(control_prompts))
    found = bench.mentions(variant, asked)
    if not is_keyed(bench, variant):
        pytest.skip("recorded only: this adapter acts on every prompt")
    silent = without_key(bench, variant, [prompt for prompt, _ in asked])
    assert found["unchanged"]["k"] >= len(silent)
    assert not silent or bench.variant(variant).router, "every prompt names a stored key, and no router is before it"


def test_detached_model_is_the_baseline(bench: Bench, variant: str, control_prompts: list[str]) -> None:
    """Greedy answers before and after an adapter was on, token for token."""
    prompts = [bench.backend.encoder.prompt(prompt) for prompt in control_prompts[:8]]
    before = bench.backend.generate(prompts, 8)
    with bench.backend.attached(bench.adapter(variant)):
        bench.backend.generate(prompts, 1)
    assert bench.backend.generate(prompts, 8) == before


@pytest.fixture(scope="module")
def together(bench: Bench, control_prompts: list[str]) -> list[list[int]]:
    """Answers of the untouched model, made in one batch."""
    return bench.backend.generate([bench.backend.encoder.prompt(prompt) for prompt in control_prompts[:14]], 8)


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_leaves_answers_alone(
    bench: Bench, control_prompts: list[str], together: list[list[int]], size: int
) -> None:
    """The same text in float32; in bfloat16 another batch shape may break a near tie the other way: counted."""
    prompts = [bench.backend.encoder.prompt(prompt) for prompt in control_prompts[: len(together)]]
    apart = [a for i in range(0, len(prompts), size) for a in bench.backend.generate(prompts[i : i + size], 8)]
    share = sum(a == b for a, b in zip(together, apart, strict=True)) / len(prompts)
    least = 1.0 if bench.backend.dtype == "float32" else 0.75
    requirement = f"in {bench.backend.dtype}, {least:.0%} of answers are the same in batches of {size} as in one"
    bench.threshold(f"batch-size/{size}", requirement, share, share, share >= least)
    assert share >= least or not bench.settings.plan.asserted
