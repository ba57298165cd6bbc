"""The n-gram hash against golden vectors, and the properties a memory relies on."""

import json
from pathlib import Path

import numpy as np
import pytest

from engram_bench.memory.hashing import ABSENT_ROW, NgramHasher, compress_vocabulary

GOLDEN = Path(__file__).parent / "golden"
VECTORS = json.loads((GOLDEN / "engram_hash_golden.json").read_text(encoding="utf-8"))
COMPRESSED = np.load(GOLDEN / "smollm2_compressed_ids.npz")["compressed_ids"].astype(np.int64)


def hasher(**changes):
    shape = {
        "vocab_size_per_ngram": [1000, 1000, 1000],
        "max_ngram_size": 4,
        "heads_per_ngram": 2,
        "layer_ids": [1, 5],
        "pad_id": 2,
        "seed": 0,
    }
    return NgramHasher(compressed_ids=COMPRESSED, **{**shape, **changes})


@pytest.mark.parametrize("vectors", VECTORS["sets"], ids=["orders-2-3", "orders-2-4"])
def test_golden_vectors(vectors):
    built = NgramHasher(compressed_ids=COMPRESSED, **vectors["config"])
    for layer in vectors["config"]["layer_ids"]:
        assert built.multipliers[layer].tolist() == vectors["multipliers"][str(layer)]
        assert built.primes[layer] == vectors["primes"][str(layer)]
        for case in vectors["cases"]:
            found = built.indices(np.array([case["input_ids"]]), layer)
            assert found.dtype == np.int64
            assert found[0].tolist() == case["indices"][str(layer)]


def test_a_prompt_shorter_than_the_longest_ngram_is_padded_on_the_left():
    ids = np.array([[2, 2, 2, 5, 9]])
    assert np.array_equal(hasher().indices(ids, 1)[:, 3:], hasher().indices(ids[:, 3:], 1))


def test_an_index_depends_on_the_last_n_tokens_alone():
    rng = np.random.default_rng(0)
    a, b = rng.integers(3, 9000, (2, 1, 12))
    b[0, -2:] = a[0, -2:]
    same = hasher().indices(a, 1)[0, -1] == hasher().indices(b, 1)[0, -1]
    assert same[:2].all(), "the bigram is shared"
    assert not same[2:].any(), "longer n-grams are not"


def test_rows_count_through_the_tables_and_leave_absent_ngrams_out():
    built = hasher()
    ids = np.array([7, 8, 9, 10])
    windows = np.array([[10, 9, 8, 7, -1], [8, 7, -1, -1, -1]])
    rows = built.rows(windows, 1)
    sizes = [p for heads in built.primes[1] for p in heads]
    starts = np.cumsum([0, *sizes[:-1]])
    assert np.array_equal(rows[0], built.indices(ids[None], 1)[0, -1] + starts)
    assert (rows[1, :2] >= 0).all(), "two tokens make a bigram"
    assert (rows[1, 2:] == ABSENT_ROW).all(), "and nothing longer"


def test_a_whole_key_has_rows_of_its_own_for_each_key_and_each_token_after_it():
    plain, keyed = hasher(), hasher(keyed=True, vocab_size_per_ngram=[5000] * 4)
    windows = np.array(
        [[10, 9, 8, 7, 55], [10, 9, 8, 7, 56], [11, 9, 8, 7, 55], [10, 9, -1, -1, 55], [10, 9, 8, 7, -1]]
    )
    assert plain.rows(windows, 1).shape == (5, 6)
    rows = keyed.rows(windows, 1)
    assert np.array_equal(rows[0, :-2], rows[1, :-2]), "n-grams do not tell these keys apart"
    whole = rows[:4, -2:]
    assert len(np.unique(whole)) == whole.size, "the whole key does, and goes on with the answer"
    assert (rows[4, -2:] == ABSENT_ROW).all(), "without a key there is none"
    assert rows[4, :-2].tolist() == rows[0, :-2].tolist()


def test_layers_and_heads_share_no_modulus():
    primes = [p for orders in hasher().primes.values() for heads in orders for p in heads]
    assert len(primes) == len(set(primes)) == 2 * 3 * 2
    assert all(p % d for p in primes for d in range(2, int(p**0.5) + 1))


def test_a_negative_id_is_refused_by_name():
    with pytest.raises(ValueError, match="input_ids has -100"):
        hasher().indices(np.array([[3, -100, 4]]), 1)


@pytest.mark.parametrize(
    "changes",
    [{"orders": [3, 2, 4]}, {"orders": [2, 3, 5]}, {"vocab_size_per_ngram": [1000]}, {"orders": [0, 2, 4]}],
)
def test_orders_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match=r"order|table"):
        hasher(**changes)


def test_compression_joins_case_accents_and_spaces(tokenizer):
    compressed = compress_vocabulary(tokenizer)
    id_of = {tokenizer.decode([i]): i for i in range(len(tokenizer))}
    assert compressed[id_of["A"]] == compressed[id_of["a"]]
    assert compressed[id_of["a"]] != compressed[id_of["b"]]
    first = list(dict.fromkeys(compressed.tolist()))
    assert first == list(range(len(first))), "numbered in order of first appearance"


def test_broken_utf8_fragments_are_kept_apart(tokenizer):
    broken = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]
    assert len(broken) > 50
    assert len(set(compress_vocabulary(tokenizer)[broken].tolist())) == len(broken)
