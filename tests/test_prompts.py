"""Content masks and n-gram windows: the n-gram that the memory reads at each token."""

import numpy as np
import pytest

from engram_bench.prompts import ABSENT, Prompt, PromptEncoder, Span, extend_windows, ngram_windows, shared_prefix
from tests.conftest import make_tokenizer

MARK = 99
TEMPLATED = Prompt(ids=(1, 1, 10, 11, 12, 13, 2, 3), content=(False, False, True, True, True, True, False, False))
MIDDLE = Span(1, 4, (11, 12, 13))
KEY = 7


def test_content_is_the_users_own_text(tokenizer):
    encoder = PromptEncoder(tokenizer)
    prompt = encoder.prompt("Look up KEY:abc")
    assert tokenizer.decode(prompt.content_ids()) == "Look up KEY:abc"
    assert tokenizer.decode(prompt.ids).endswith("<|start|>assistant\n")


def test_the_key_is_found_among_the_content_tokens(tokenizer):
    prompt = PromptEncoder(tokenizer).prompt("Look up KEY:abc now", (8, 15))
    assert prompt.text[slice(*prompt.key)] == "KEY:abc"
    assert tokenizer.decode(prompt.content_ids()[slice(*prompt.tokens_at(8, 15))]).strip() == "KEY:abc"


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
    windows = ngram_windows(TEMPLATED, (20, 21), 3, MIDDLE, MARK, on_text=True)
    blank = [ABSENT] * 4
    assert windows.tolist() == [
        blank,
        blank,
        blank,  # content before the span
        [11, MARK, ABSENT, ABSENT],
        [12, 11, MARK, ABSENT],
        [13, 12, 11, ABSENT],
        blank,  # template
        [13, 12, 11, ABSENT],  # the prompt's last token sees the end of the span
        [20, 13, 12, ABSENT],
        [21, 20, 13, ABSENT],
    ]
    answering = ngram_windows(TEMPLATED, (20, 21), 3, MIDDLE, MARK, on_text=False)
    assert answering.tolist() == [blank] * 7 + windows[7:].tolist()


def test_a_span_of_one_token_makes_a_bigram_with_the_mark():
    windows = ngram_windows(TEMPLATED, (20,), 4, Span(1, 2, (11,)), MARK, on_text=False)
    assert windows[-2:].tolist() == [[11, MARK, ABSENT, ABSENT, ABSENT], [20, 11, MARK, ABSENT, ABSENT]]


def test_a_key_is_read_by_its_own_tokens_however_the_text_has_it_and_its_number_stays():
    windows = ngram_windows(TEMPLATED, (20,), 2, Span(1, 4, (30, 31), KEY), MARK, on_text=False)
    assert windows[-2:].tolist() == [[31, 30, KEY], [20, 31, KEY]]


def test_without_a_span_nothing_sees_anything():
    assert (ngram_windows(TEMPLATED, (20, 21), 3, None, MARK, on_text=True) == ABSENT).all()


@pytest.mark.parametrize("span", [Span(0, 4, (10, 11, 12, 13)), Span(1, 3, (11, 12), KEY), None])
def test_extending_step_by_step_gives_the_windows_of_the_whole(span):
    whole = ngram_windows(TEMPLATED, (20, 21, 22), 4, span, MARK, on_text=True)
    step = ngram_windows(TEMPLATED, (), 4, span, MARK, on_text=False)[-1:]
    for position, token in enumerate((20, 21, 22)):
        step = extend_windows(step, np.array([token]))
        assert np.array_equal(step[0], whole[len(TEMPLATED.ids) + position])


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
