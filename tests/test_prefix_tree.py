"""Prefix trees: every prompt is a path of its tree, and a shared token is stored once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bench.backends.torch.prefix_tree import trees
from engram_bench.prompts import ABSENT

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=12)


def nothing(prompts):
    return [np.full((len(prompt), 2), ABSENT) for prompt in prompts]


@given(PROMPTS, st.integers(1, 20), st.data())
def test_every_prompt_stands_whole_in_one_tree_and_sees_itself_alone(prompts, most, data):
    drawn = st.sampled_from([(ABSENT, ABSENT), (1, ABSENT), (1, 2)])
    windows = [np.array(data.draw(st.lists(drawn, min_size=len(p), max_size=len(p)))) for p in prompts]
    held = []
    for tree in trees(prompts, windows, most):
        assert len(tree.ids) == len(tree.depths) == len(tree.windows) == len(tree.sees)
        for i, path in zip(tree.which, tree.paths, strict=True):
            assert tuple(tree.ids[path]) == prompts[i]
            assert tree.depths[path].tolist() == list(range(len(path)))
            assert np.array_equal(tree.windows[path], windows[i])
            for length, node in enumerate(path, start=1):
                assert set(np.flatnonzero(tree.sees[node])) == set(path[:length])
        held += tree.which
    assert sorted(held) == list(range(len(prompts)))


@given(PROMPTS, st.integers(1, 20))
def test_a_token_stands_once_and_a_tree_is_as_full_as_it_may_be(prompts, most):
    found = trees(prompts, nothing(prompts), most)
    for tree, following in zip(found, [*found[1:], None], strict=True):
        told = beginnings(prompts[i] for i in tree.which)
        assert len(tree.ids) == len(told)
        assert len(tree.ids) <= most or len(tree.which) == 1
        if following:
            assert len(told | beginnings([prompts[following.which[0]]])) > most


def beginnings(prompts):
    return {prompt[:length] for prompt in prompts for length in range(1, len(prompt) + 1)}


def test_tokens_that_see_different_n_grams_stand_beside_each_other():
    prompts = [(5, 6, 7), (5, 6, 8), (5, 9)]
    windows = nothing(prompts)
    windows[1][1] = (6, ABSENT)
    (tree,) = trees(prompts, windows, 100)
    assert sorted(tree.ids.tolist()) == [5, 6, 6, 7, 8, 9]


@pytest.mark.parametrize("most", [1, 100])
def test_equal_prompts_may_both_be_there(most):
    prompts = [(1, 2), (1, 2)]
    assert [path for tree in trees(prompts, nothing(prompts), most) for path in tree.paths] == [[0, 1]] * 2
