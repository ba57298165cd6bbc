"""Content masks and n-gram windows: the n-gram that the memory reads at each token."""

from itertools import pairwise

import numpy as np
import pytest

from engram_bench.memory.keys import KeyIndex
from engram_bench.prompts import ABSENT, Prompt, PromptEncoder, _in_word, extend_windows, ngram_windows, shared_prefix
from tests.conftest import make_tokenizer

MARK = 99
TEMPLATED = Prompt(ids=(1, 1, 10, 11, 12, 13, 2, 3), content=(False, False, True, True, True, True, False, False))


def test_content_is_the_users_own_text(tokenizer):
    encoder = PromptEncoder(tokenizer)
    prompt = encoder.prompt("Look up KEY:abc")
    assert tokenizer.decode(prompt.content_ids()) == "Look up KEY:abc"
    assert tokenizer.decode(prompt.ids).endswith("<|start|>assistant\n")


def test_the_key_is_found_among_the_content_tokens(tokenizer):
    prompt = PromptEncoder(tokenizer).prompt("Look up KEY:abc now", (8, 15))
    assert tokenizer.decode(prompt.content_ids()[slice(*prompt.key)]).strip() == "KEY:abc"


def test_a_tokenizer_without_a_template_gets_the_text_as_it_is():
    encoder = PromptEncoder(make_tokenizer(chat=False))
    prompt = encoder.prompt("KEY:abc")
    assert all(prompt.content)
    assert encoder.tokenizer.decode(prompt.ids) == "KEY:abc"


def test_an_answer_ends_with_end_of_text_and_decoding_stops_there(tokenizer):
    encoder = PromptEncoder(tokenizer)
    ids = encoder.answer("Paris")
    assert ids[-1] == tokenizer.eos_token_id
    assert encoder.decode([*ids, *ids]) == "Paris"


def test_the_shared_prefix_stops_at_the_first_difference_and_before_content(tokenizer):
    encoder = PromptEncoder(tokenizer)
    prompts = [encoder.prompt(text) for text in ("KEY:abc", "KEY:abd", "KEY:abe")]
    length = shared_prefix(prompts)
    assert length > 5
    assert not any(prompts[0].content[:length])
    assert prompts[0].content[length]


def test_a_prompt_that_is_all_prefix_keeps_a_token():
    prompt = Prompt((5, 6, 7), (False, False, False))
    assert shared_prefix([prompt, prompt]) == 2


def test_windows_look_back_over_the_span_and_the_answer_and_skip_all_else():
    windows = ngram_windows(TEMPLATED, (20, 21), 3, (1, 4), MARK, on_text=True)
    blank = [ABSENT] * 3
    assert windows.tolist() == [
        blank,
        blank,
        blank,  # content before the span
        [11, MARK, ABSENT],
        [12, 11, MARK],
        [13, 12, 11],
        blank,  # template
        [13, 12, 11],  # the prompt's last token sees the end of the span
        [20, 13, 12],
        [21, 20, 13],
    ]
    answering = ngram_windows(TEMPLATED, (20, 21), 3, (1, 4), MARK, on_text=False)
    assert answering.tolist() == [blank] * 7 + windows[7:].tolist()


def test_a_span_of_one_token_makes_a_bigram_with_the_mark():
    windows = ngram_windows(TEMPLATED, (20,), 4, (1, 2), MARK, on_text=False)
    assert windows[-2:].tolist() == [[11, MARK, ABSENT, ABSENT], [20, 11, MARK, ABSENT]]


def test_without_a_span_nothing_sees_anything():
    assert (ngram_windows(TEMPLATED, (20, 21), 3, None, MARK, on_text=True) == ABSENT).all()


@pytest.mark.parametrize("span", [(0, 4), (1, 3), None])
def test_extending_step_by_step_gives_the_windows_of_the_whole(span):
    whole = ngram_windows(TEMPLATED, (20, 21, 22), 4, span, MARK, on_text=True)
    step = ngram_windows(TEMPLATED, (), 4, span, MARK, on_text=False)[-1:]
    for position, token in enumerate((20, 21, 22)):
        step = extend_windows(step, np.array([token]))
        assert np.array_equal(step[0], whole[len(TEMPLATED.ids) + position])


def test_the_longest_key_wins_and_the_last_of_equals():
    index = KeyIndex([(1, 2), (1, 2, 3), (7,), (8,)], size=4)
    assert index.find([7, 1, 2, 3, 9], [False] * 5) == (1, 4)
    assert index.find([7, 5, 8], [False] * 3) == (2, 3)
    assert index.find([5, 6], [False] * 2) is None
    assert index.find([], []) is None


def test_a_key_is_not_found_within_a_longer_word(tokenizer):
    index = KeyIndex([(1, 2)], size=4)
    assert index.find([1, 2, 3], [False, True, True]) is None
    assert index.find([3, 1, 2], [False, True, False]) is None
    assert index.find([1, 2, 3], [False, True, False]) == (0, 2)
    prompt = PromptEncoder(tokenizer).prompt("Look up KEY:abcd, f(x)")
    tokens = [tokenizer.decode([i]).strip() for i in prompt.content_ids()]
    words = "".join(("" if j else " ") + token for token, j in zip(tokens, prompt.continues_word, strict=True)).split()
    assert words == ["Look", "up", "KEY", ":", "abcd", ",", "f", "(", "x", ")"]


def test_of_a_long_key_its_tail_is_found():
    assert KeyIndex([(1, 2, 3, 4, 5)], size=3).find([0, 1, 2, 3, 4, 5], [True] * 6) == (3, 6)


def test_a_key_of_exactly_n_tokens_is_no_tail_of_a_longer_word():
    index = KeyIndex([(1, 2, 3)], size=3)
    for known in (index, KeyIndex.from_array(index.to_array())):
        assert known.find([0, 1, 2, 3], [False, True, True, True]) is None
        assert known.find([0, 1, 2, 3], [False, False, True, True]) == (1, 4)
    longer = index.with_keys([(0, 1, 2, 3)])
    assert KeyIndex.from_array(longer.to_array()).find([0, 1, 2, 3], [True] * 4) == (1, 4)
    assert longer.without([(1, 2, 3)]).find([1, 2, 3], [False] * 3) is None
    assert index.find([1, 2, 3], [False] * 3) == (0, 3), "an index stays as it is"


@pytest.mark.parametrize(("text", "continues_word"), [
    ("首都は東京です", False), ("ข้าวคืออะไร", False), ("서울은", False), ("दिल्ली", True), ("naïve", True),
    ("a_b2", True), ("\ufe0fa", False), ("\u20e3a", False),
])  # fmt: skip
def test_where_words_are_not_set_apart_each_letter_may_begin_one(text, continues_word):
    found = {_in_word(a) and _in_word(b) for a, b in pairwise(text)}
    assert found == {continues_word}


def test_the_day_is_the_same_in_every_prompt():
    tokenizer = make_tokenizer()
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} " + plain + "!"
    assert PromptEncoder(tokenizer)._before == "01 Jan 2026 "


@pytest.mark.parametrize("template", [
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}<assistant>",
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[Q]{{ m['content'] }}[A]{% else %}"
    "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
])  # fmt: skip
def test_of_a_longer_talk_the_last_turn_is_told_apart_where_the_first_alone_has_a_start_token(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template, tokenizer.bos_token = template, "Look"
    encoder = PromptEncoder(tokenizer)
    turns = [
        {"role": role, "content": text} for role, text in (("user", "KEY:abc"), ("assistant", "red"), ("user", "up"))
    ]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    prompt, answer = encoder.parse(ids)
    assert tokenizer.decode(prompt.content_ids()).strip() == "up"
    assert answer == ()


def test_a_key_index_survives_its_array():
    index = KeyIndex([(1, 2, 3), (9,)], size=3)
    again = KeyIndex.from_array(index.to_array())
    assert again.find([1, 2, 3], [False] * 3) == (0, 3)
    assert again.find([9], [False]) == (0, 1)
