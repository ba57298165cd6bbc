"""Collateral: how much an adapter changes where nothing is asked, and whether detaching it restores the baseline."""

import pytest

from engram_bench.data.prompt_sets import Passage
from engram_bench.run import soundness
from engram_bench.run.bench import Bench
from engram_bench.variants.configs import EngramConfig


def test_unrelated_text(bench: Bench, variant: str, control_prompts: list[str]) -> None:
    """Recorded for the report. A memory with `span: key` changes nothing, bit for bit; all other adapters change it."""
    found = bench.collateral(variant, control_prompts)
    config, adapter = bench.variant(variant).config, bench.adapter(variant)
    if not (config and config.keyed) or (adapter and adapter.acts_on_template):
        assert found.kl_mean > 0, "the adapter is not attached, or its training changed nothing"
        return
    span, encoder = bench.adapter(variant).span, bench.backend.encoder
    named = [prompt for prompt in control_prompts if span(encoder.prompt(prompt))]
    to_the_letter = isinstance(config, EngramConfig)  # no such key of the shipped patterns is in these prompts
    if named and not (to_the_letter and bench.settings.shipped_patterns):
        pytest.skip(f"recorded only: a key of these patterns is in the control prompt {named[0]!r}")
    assert (found.kl_max, found.top1_unchanged) == (0, 1)


def test_running_text_with_keys(bench: Bench, variant: str, passages: list[Passage]) -> None:
    """Prose and code that hold keys and ask nothing; recorded for the report.

    No threshold: no requirement says how far such a text may be changed, and how often a memory that looks for keys
    acts on it follows from how many keys it holds. Where it finds none, the text must be left alone, bit for bit.
    """
    found = bench.passages(variant, passages)
    if not found:
        pytest.skip("no item is trained, or no passage fits the model's context")
    for kind in found:
        assert kind["firings"] != 0 or kind["kl_max"] == 0, kind["kind"]


def test_detached_model_is_the_baseline(bench: Bench, variant: str, control_prompts: list[str]) -> None:
    """Greedy answers before and after an adapter was attached are equal, token for token."""
    assert soundness.detached(bench, variant, control_prompts[:8])


@pytest.mark.parametrize("size", soundness.BATCHES)
def test_batch_size_leaves_answers_alone(bench: Bench, control_prompts: list[str], size: int) -> None:
    """In float32 the text is the same. In bfloat16 another batch shape may round a near tie the other way."""
    share = soundness.same_in_batches(bench, control_prompts[:8])[str(size)]
    least = 1.0 if bench.backend.dtype == "float32" else 0.75
    requirement = f"in {bench.backend.dtype}, {least:.0%} of answers are the same in batches of {size} as in one"
    bench.threshold(f"batch-size/{size}", requirement, share, share, share >= least)
    assert share >= least or not bench.settings.plan.asserted
