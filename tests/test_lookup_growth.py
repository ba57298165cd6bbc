"""The look-up benchmark times what it says: filled tables, keys that stand in the prompts, prompts of a given size."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import lookup
from engram_bench import variants
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.memory.keys import KeyIndex, key_name, units
from engram_bench.prompts import PromptEncoder
from tests.running import ROOT

PARTS = ("find_s", "accented_s", "hash_s", "gather_s", "direct_s", "step_s", "seconds")


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return PromptEncoder(tokenizer)


def test_keys_are_shipped_ones_first_and_each_counts_once():
    few, many = lookup.known_keys(100), lookup.known_keys(9_000)
    assert len(few) == 100
    assert len({key_name(key) for key in many}) == 9_000
    assert few == lookup.known_keys(100)
    assert any(key.startswith("SYN:") for key in many)
    assert any(" of " in key for key in many)


@pytest.mark.parametrize("tokens", [16, 300, 5_000])
def test_a_prompt_has_the_tokens_asked_for_and_a_known_key_at_its_start(encoder, tokens):
    keys = ["CAPITAL:France", "SYN:vv414y"]
    prompt = lookup.prompt_of(encoder, keys, tokens, random.Random(0))
    assert tokens - 2 <= len(prompt.places) <= tokens + 2
    index = KeyIndex({key_name(key): (1,) for key in keys})
    if tokens > 16:
        assert index.find(prompt.text)
        assert index.find(prompt.text[:40])
    assert len(units(prompt.text)) > tokens / 10


def test_every_row_is_held_and_filled_and_a_look_up_reads_rows(encoder):
    (_, variant) = variants.select("engram-keyed")
    config = replace(variant.config, layers=[0])
    memory = lookup.filled(config, compress_vocabulary(encoder.tokenizer), encoder.eos_id, 12_000)
    held = memory.addresses.rows[0]
    assert 12_000 <= len(held) < 13_000
    assert len(memory.table) == len(held) + 1
    assert np.count_nonzero(memory.table.any(axis=1)) == len(memory.table)
    with pytest.raises(ValueError, match="no key is found"):
        lookup.look_up(memory, encoder.prompt("What is CAPITAL:France?"))


def test_each_size_is_varied_alone_and_timed(encoder):
    base = {"rows": 1_200, "keys": 50, "tokens": 200}
    wanted = [(name, {**base, name: factor * base[name]}) for name in base for factor in (1, 2)]
    found = lookup.measure(encoder, compress_vocabulary(encoder.tokenizer), wanted, rounds=1)
    assert {name: [point[name] for point in points] for name, points in found.items()} == {
        name: [size, 2 * size] for name, size in base.items()
    }
    assert all(point[part] > 0 for points in found.values() for point in points for part in PARTS)


def test_each_series_goes_through_the_base_and_varies_one_size():
    points = lookup.points()
    assert [sizes for _, sizes in points].count(lookup.BASE) == 3
    assert all({size: sizes[size] for size in sizes if size != name}.items() <= lookup.BASE.items()
               for name, sizes in points)  # fmt: skip


def test_the_stored_measurement_has_every_point_and_says_where_it_was_made():
    stored = json.loads((ROOT / "benchmarks" / "results" / "growth.json").read_text(encoding="utf-8"))["lookup"]
    assert set(stored) == {"commit", "date", "dtype", "machine", "base", "rows", "keys", "tokens"}
    assert all(point[part] > 0 for name in lookup.BASE for point in stored[name] for part in PARTS)
    assert [(name, {size: point[size] for size in lookup.BASE}) for name in lookup.BASE for point in stored[name]] == (
        lookup.points()
    )
