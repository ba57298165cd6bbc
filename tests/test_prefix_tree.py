"""Prompts as trees: every prompt whole in its tree, each token once, and no adapter moves what has nothing to see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bench.backends.prefix_tree import trees
from engram_bench.prompts import ABSENT

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=12)


def nothing(prompts):
    return [np.full((len(prompt), 2), ABSENT) for prompt in prompts]


@given(PROMPTS, st.integers(1, 20), st.data())
def test_every_prompt_stands_whole_in_its_tree_and_sees_itself_alone(prompts, most, data):
    drawn = st.sampled_from([(ABSENT, ABSENT), (1, ABSENT), (1, 2)])
    windows = [np.array(data.draw(st.lists(drawn, min_size=len(p), max_size=len(p)))) for p in prompts]
    rest = iter(zip(prompts, windows, strict=True))
    for tree in trees(prompts, windows, most):
        assert len(tree.ids) == len(tree.depths) == len(tree.windows) == len(tree.sees)
        for path in tree.paths:
            prompt, own = next(rest)
            assert tuple(tree.ids[path]) == prompt
            assert tree.depths[path].tolist() == list(range(len(prompt)))
            assert np.array_equal(tree.windows[path], own)
            for length, node in enumerate(path, start=1):
                assert set(np.flatnonzero(tree.sees[node])) == set(path[:length])
    assert next(rest, None) is None


@given(PROMPTS, st.integers(1, 20))
def test_a_token_stands_once_and_a_tree_keeps_to_its_size(prompts, most):
    for tree in trees(prompts, nothing(prompts), most):
        told = {tuple(tree.ids[path[:length]]) for path in tree.paths for length in range(1, len(path) + 1)}
        assert len(tree.ids) == len(told)
        assert len(tree.ids) <= most or len(tree.paths) == 1


def test_prompts_that_differ_in_their_windows_alone_part_behind_all_others():
    prompts = [(5, 6, 7), (5, 6, 8), (5, 9)]
    windows = nothing(prompts)
    (plain,) = trees(prompts, windows, 100)
    windows[1][1] = (6, ABSENT)
    (parted,) = trees(prompts, windows, 100)
    count = len(plain.ids)
    assert (count, len(parted.ids)) == (5, 7)
    assert [parted.paths[i] for i in (0, 2)] == [plain.paths[i] for i in (0, 2)]
    assert parted.paths[1] == [0, 5, 6]
    assert np.array_equal(parted.sees[:count, :count], plain.sees)
    assert np.array_equal(parted.ids[:count], plain.ids)


@pytest.mark.parametrize("most", [1, 100])
def test_equal_prompts_may_both_be_there(most):
    assert [path for tree in trees([(1, 2), (1, 2)], nothing([(1, 2)] * 2), most) for path in tree.paths] == [
        [0, 1]
    ] * 2
