"""Which n-gram each token reads: in the template as in training, in raw text by the rule, in any parts the same."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from engram_bench import variants
from engram_bench.errors import UsageError
from engram_bench.memory.addresses import Addresses
from engram_bench.memory.keys import joined, key_name, units
from engram_bench.memory.reading import PADDING, Reading, Row
from engram_bench.memory.whole_text import WholeText
from engram_bench.prompts import ABSENT, PromptEncoder, ngram_windows
from tests.conftest import ENGRAM, PAPER, make_tokenizer
from tests.test_prompts import NAMED, TOKENIZERS

LONG = "é c " * 12
FACTS = {
    "KEY:abc": "red",
    "KEY:abcd": "blue: sky",
    "KEY:é": "x\ny",
    "abc": "what?",
    LONG: "red",
    "(abc)": "x",
    "x []": "y",
}
WORDS = [
    "KEY:abc",
    "KEY:abcd",
    "KEY:é",
    "KEY:",
    "abc",
    " ",
    "  ",
    "\n",
    "\n\n",
    "?",
    "é",
    "漢",
    "🙂",
    "What is stored under ",
    "e",
    "\u0301",
    "\u00a0",
    " " * 40,
    "é c " * 6,
    "(abc)):",
]
ENGLISH = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=8).map("".join)
ENDS = ["<|end|>", "\n", "<|start|>", "user", "assistant", "\n<|start|>user\n", "<|end|>\n<|start|>assistant\n"]
TURNS = ["<|start|>user\nKEY:abc", "<|start|>user\nKEY:abc<|end|>\n<|start|>assistant\n"]
PLACES = st.lists(st.sampled_from([*WORDS, *ENDS]), max_size=12)


def make_reading(span, chat=True, bos=False, make=make_tokenizer, facts=FACTS):
    tokenizer = make(chat)
    if bos:
        tokenizer.bos_token = "<|start|>"
    encoder = PromptEncoder(tokenizer)
    texts = ["{}", "What is stored under {}?"]
    pairs = [
        (encoder.prompt(text.format(key), (text.index("{"), text.index("{") + len(key))), encoder.answer(value))
        for key, value in facts.items()
        for text in texts
    ]
    config = variants.parse(ENGRAM + f"span: {span}\n", "test").config
    addresses = Addresses.of_training(config, encoder, pairs)
    return encoder, Reading(encoder, addresses, addresses.span)


@pytest.fixture(scope="module", params=["key", "text"])
def chat(request):
    return make_reading(request.param)


@pytest.fixture(scope="module", params=[("key", True), ("text", True), ("key", False), ("text", False)])
def either(request):
    return make_reading(*request.param, bos=True)


def read(reading, ids):
    """(what each token reads, the numbers after each)"""
    row = Row(reading.start)
    read = [(reading.read(row, token), row.now) for token in ids]
    return [window for window, _ in read], [numbers for _, numbers in read]


def encoded(encoder, text):
    return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


def rendered(encoder, *turns):
    talk = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return encoded(encoder, encoder.tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))


def answered(encoder, reading, text, value):
    """The keys in whose place the tokens of a value, written right after a text, read what they read in training."""
    ids, after = encoded(encoder, text), encoded(encoder, value)
    seen = read(reading, [*ids, *after])[0][len(ids) - 1 :]
    return [key for key in FACTS if seen == trained(encoder, reading, key, after).tolist()]


def trained(encoder, reading, key, after):
    prompt = encoder.prompt(key)
    return ngram_windows(prompt, after, reading.size, reading._span(prompt), encoder.eos_id, on_text=False)[
        len(prompt.ids) - 1 :
    ]


@settings(deadline=None)
@given(text=ENGLISH.filter(bool), answer=ENGLISH)
@example(text="<", answer="")  # begins as the text of the special token does that follows
@example(text="Look up <|start|>user\nKEY:abc<|end|>\n<|start|>assistant\nKEY:é", answer="red")
def test_in_the_template_tokens_read_what_they_read_in_training(chat, text, answer):
    encoder, reading = chat
    prompt, ids = encoder.prompt(text), encoded(encoder, answer)
    expected = ngram_windows(prompt, ids, reading.size, reading._span(prompt), encoder.eos_id, on_text=reading.on_text)
    assert read(reading, [*prompt.ids, *ids])[0] == expected.tolist()


@settings(max_examples=50, deadline=None)
@given(turns=st.lists(ENGLISH.filter(bool), min_size=3, max_size=3), answer=ENGLISH)
def test_in_a_later_turn_tokens_read_what_they_read_in_a_first(chat, turns, answer):
    encoder, reading = chat
    whole, first = rendered(encoder, *turns), rendered(encoder, turns[2])
    after = encoded(encoder, answer)
    count = len(encoded(encoder, turns[2])) + len(after)
    late, early = (read(reading, [*ids, *after])[0] for ids in (whole, first))
    assert late[-count:] == early[-count:]


@settings(deadline=None)
@given(texts=PLACES, cuts=st.lists(st.integers(0, 80), max_size=4), data=st.data())
def test_in_any_parts_tokens_read_the_same(either, texts, cuts, data):
    """Each text is tokenized alone, so tokens are not always those of the whole; padding may stand anywhere."""
    encoder, reading = either
    ids = [i for text in texts for i in encoded(encoder, text)]
    windows, numbers = read(reading, ids)
    known = np.array(numbers, np.int64).reshape(len(ids), len(reading.start))
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(ids)], strict=True):
        padding = np.full((data.draw(st.integers(0, 3)), known.shape[1]), PADDING)
        before = np.concatenate([known[:start], padding])
        newest = before[len(before) - reading.reach :] if len(before) > reading.reach else before
        if (newest[:, 0] == PADDING).any():
            newest = before
        row = Row(reading.start, newest, lambda before=before: before)
        for at in range(start, min(end, len(ids))):
            assert reading.read(row, ids[at]) == windows[at]
            assert row.now == numbers[at]


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 399), max_size=60), cut=st.integers(0, 60))
def test_nonsense_is_read_the_same_in_two_parts(either, ids, cut):
    _, reading = either
    windows, numbers = read(reading, ids)
    row = Row(reading.start, np.array(numbers[:cut], np.int64).reshape(-1, len(reading.start)))
    assert [reading.read(row, token) for token in ids[cut:]] == windows[cut:]


@pytest.fixture(scope="module")
def keyed():
    return make_reading("key")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("KEY:abc", ["KEY:abc"]),
        ("KEY:abcd", ["KEY:abcd"]),
        ("What is stored under KEY:abc?", ["KEY:abc"]),
        ("The key is KEY:é.\nAnswer:", ["KEY:é"]),
        ("KEY:abc?red\nKEY:abcd?", ["KEY:abcd"]),  # the last key, not the longest
        ("KEY:abcd?blue: sky\nKEY:abc?", ["KEY:abc"]),
        ("KEY:abc KEY:xyz =", ["KEY:abc"]),
        ("KEY:abc and then ->", ["KEY:abc"]),
        ("key :\nABC is the key =", ["KEY:abc"]),
        (f"KEY{' ' * 40}:{' ' * 40}abc?", ["KEY:abc"]),
        (LONG + "?", [LONG]),
        (LONG[1:] + "?", []),
        ("KEY:abcd and (abc)):", ["(abc)"]),  # the key ends within a token
        ("KEY:abcd x [] =", ["x []"]),  # the key's last token begins with another mark
        ("KEY:abc漢?", ["KEY:abc"]),  # a word of its own
        ("KEY:abcé?", []),
        ("KEY:abc🙂?", ["KEY:abc"]),
        ("KEY:e\u0301", ["KEY:é"]),
        ("KEY:e\u0301x?", []),
        ("KEY:abc\u00a0", []),
        ("KEY:abc<|end|>What?", []),  # end-of-text begins a new text
        ("KEY:abcx?", []),  # no key: the word goes on
        ("KEY:abc is", []),  # no place where an answer begins
        ("Nothing:", []),
        ("?", []),
        ("<|start|>user\nKEY:abc?", []),  # not raw: a user's turn, which is not over
        ("<|start|>system\nKEY:abc?", []),
        ("<|start|>user\nKEY:abc?<|end|>\n<|start|>assistant\n", ["KEY:abc"]),
        ("<|start|>user\nKEY:abc?<|end|>\n<|start|>assistant\nred<|end|>\n?", []),
        ("<|start|>user\nKEY:abc?<|end|>\n<|start|>user\nKEY:abcd<|end|>\n<|start|>assistant\n", ["KEY:abcd"]),
    ],
)
def test_where_an_answer_begins(keyed, text, keys):
    encoder, reading = keyed
    assert answered(encoder, reading, text, "zq") == keys


@settings(deadline=None)
@given(text=ENGLISH)
@example(text="(abc)):")
@example(text="KEY:abcé")
@example(text=f"KEY:abc\n{LONG[1:]}")
def test_the_key_of_raw_text_is_the_last_in_it_and_the_longest_there(keyed, text):
    encoder, reading = keyed
    split, names = units(text + "?"), {key_name(key) for key in FACTS}
    places = [
        (end, -start) for end in range(len(split) + 1) for start in range(end) if joined(split[start:end]) in names
    ]
    end, start = max(places, default=(0, 0))
    numbers = read(reading, [*encoded(encoder, text), *encoded(encoder, "?")])[1]
    expected = reading._stored(joined(split[-start:end])) if places else reading._none
    assert reading._windows(numbers[-1])[1] == expected


@pytest.mark.parametrize("before", ["x", "é", "漢", ":", "KEY"])
def test_a_key_is_whole_however_far_its_words_stand_apart(keyed, before):
    encoder, reading = keyed
    for count in range(40):
        numbers = read(reading, encoded(encoder, f"{before}KEY{' ' * count}:abc?"))[1]
        key = "key : abc" if before in ("漢", ":") else "abc"
        assert reading._windows(numbers[-1])[1] == reading._stored(key)


def test_a_trained_answer_goes_on_across_what_begins_an_answer(keyed):
    encoder, reading = keyed
    assert answered(encoder, reading, "KEY:abcd?", "blue: sky") == ["KEY:abcd"]
    assert answered(encoder, reading, "KEY:abcd?", "b: sky") == []


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("text", "keys"), [("<|start|>KEY:abc?", ["KEY:abc"]), ("KEY:abc<|start|>?", [])])
def test_beginning_of_text_begins_a_new_text(chat, text, keys):
    """With the template, it is the token that opens turns, too."""
    encoder, reading = make_reading("key", chat, bos=True)
    assert answered(encoder, reading, text, "zq") == keys


@pytest.mark.parametrize("between", ["<|end|>", "<|start|>"])
def test_raw_text_is_read_whole_by_a_memory_that_acts_on_text(between):
    encoder, reading = make_reading("text", bos=True)
    ids = encoded(encoder, "Look up the key")
    windows = np.array(read(reading, [*ids, *encoded(encoder, between), *ids])[0])
    stream = np.array([ABSENT] * (reading.size - 2) + [encoder.eos_id, *ids])
    grams = np.lib.stride_tricks.sliding_window_view(stream, reading.size)[:, ::-1]
    expected = np.pad(grams, ((0, 0), (0, 1)), constant_values=ABSENT)  # no key
    assert (windows[: len(ids)] == expected).all()
    assert (windows[len(ids)] == ABSENT).all()
    assert (windows[len(ids) + 1 :] == expected).all()


def test_the_template_s_own_text_reads_nothing():
    encoder, reading = make_reading("text", bos=True)
    text = "<|start|>system\nYou are another.<|end|>\n<|start|>user\n"
    assert (np.array(read(reading, encoded(encoder, text))[0]) == ABSENT).all()


def test_end_of_text_ends_an_answer(keyed):
    encoder, reading = keyed
    ids = encoded(encoder, f"{TURNS[1]}red<|end|>\n<|start|>")
    windows = np.array(read(reading, ids)[0])
    assert (windows[-3:] == ABSENT).all()
    assert (windows[-4] != ABSENT).all()  # an n-gram and its key


def test_a_template_with_characters_of_several_tokens_is_found():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "漢").replace("m['role']", "'🙂'")
    encoder = PromptEncoder(tokenizer)
    addresses = make_reading("key")[1]._addresses
    reading = Reading(encoder, addresses, addresses.span)
    talk = encoder.tokenizer.decode(rendered(encoder, "x?", "y", "KEY:é"))
    assert answered(encoder, reading, talk, "zq") == ["KEY:é"]


def test_a_token_that_ends_the_template_and_begins_the_answer_goes_on_from_the_key():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant\ni")
    encoder = PromptEncoder(tokenizer)
    addresses = make_reading("key")[1]._addresses
    reading = Reading(encoder, addresses, addresses.span)
    alone, joined = rendered(encoder, "KEY:abc"), encoded(encoder, tokenizer.decode(rendered(encoder, "KEY:abc")) + "s")
    assert len(alone) == len(joined)  # "is" is one token
    gram = read(reading, alone)[0][-1]
    assert read(reading, joined)[0][-1] == [joined[-1], *gram[:-2], gram[-1]]


def test_what_a_token_holds_of_the_template_is_no_part_of_the_user_s_text():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content'] + '", "m['content'] + 's.")
    encoder, reading = make_reading("key", make=lambda _: tokenizer, facts={"KEY:i": "red"})
    prompt, after = encoder.prompt("KEY:i"), encoder.answer("red")[:-1]
    assert "is" in map(reading.pieces.__getitem__, prompt.ids)
    expected = ngram_windows(prompt, after, reading.size, reading._span(prompt), encoder.eos_id, on_text=False)
    assert (expected[-1] != ABSENT).all()
    assert read(reading, [*prompt.ids, *after])[0] == expected.tolist()


def test_a_template_that_is_not_found_in_its_own_tokens_is_refused():
    encoder = PromptEncoder(make_tokenizer())
    encoder._header = "not there"
    addresses = make_reading("key")[1]._addresses
    with pytest.raises(UsageError, match="cannot be found"):
        Reading(encoder, addresses, addresses.span)


@pytest.mark.parametrize("span", ["key", "text"])
@pytest.mark.parametrize("text", [
    "KEY:abc", "What is stored under KEY:abcd?", "KEY:é\nis what?", "Look up\nAnswer:\n KEY:abc", "abc\n", " ",
])  # fmt: skip
def test_without_a_template_an_answer_reads_what_it_read_in_training(span, text):
    encoder, reading = make_reading(span, chat=False)
    prompt, after = encoder.prompt(text), encoded(encoder, "red zq")
    expected = ngram_windows(
        prompt, after, reading.size, reading._span(prompt), encoder.eos_id, on_text=reading.on_text
    )
    found = read(reading, [*prompt.ids, *after])[0]
    assert found[-len(after) - 1 :] == expected[-len(after) - 1 :].tolist()


def test_one_step_of_a_batch_reads_what_each_row_reads(either):
    encoder, reading = either
    texts = ["KEY:abc", "What is stored under KEY:abc?", "<|start|>", "x", *TURNS]
    after = encoded(encoder, "red<|end|>\n?a")
    rows, fast = [encoded(encoder, text) for text in texts], 0
    for token in after:
        last = np.array([read(reading, ids)[1][-1] for ids in rows])
        reads, numbers, slow = reading.step(last, np.full(len(rows), token))
        for n, ids in enumerate(rows):
            windows, known = read(reading, [*ids, token])
            assert slow[n] or (reads[n].tolist(), numbers[n].tolist()) == (windows[-1], known[-1])
        rows = [[*ids, token] for ids in rows]
        fast += (~slow).sum()
    assert fast > len(rows)


@pytest.fixture(scope="module", params=TOKENIZERS)
def kinds(request):
    """For a kind of tokenizer: (encoder, reading) with a chat template and without one."""
    make, facts = TOKENIZERS[request.param], {"Fix:Paris": "red", "Fix:Straße": "x", "Fix:Paris is": "y"}
    return {chat: make_reading("key", chat, make=make, facts=facts) for chat in (True, False)}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("text", [
    *[named.replace("KEY:abc", "Fix:Paris") for named in NAMED],
    "Fix:Paris?", " What is stored:  fix :paris?\n", "Fix:Straße", "Fix:\n\nParis's", "Fix:Paris is", "x",
])  # fmt: skip
def test_a_text_is_read_as_in_training_whatever_splits_it_into_tokens(kinds, chat, text):
    """Special tokens that the text names do not end its turn."""
    encoder, reading = kinds[chat]
    prompt, after = encoder.prompt(text), encoder.answer("red")[:-1]
    expected = ngram_windows(prompt, after, reading.size, reading._span(prompt), encoder.eos_id, on_text=False).tolist()
    ids = [*prompt.ids, *after]
    assert read(reading, ids)[0][-len(after) - 1 :] == expected[-len(after) - 1 :]
    if chat:
        assert read(reading, ids)[0] == expected
        earlier = [*encoder.prompt("Fix:Straße").ids, *encoder.answer("red")]
        assert read(reading, [*earlier, *ids])[0][-len(ids) :] == expected, "in a later turn"


@pytest.mark.parametrize("template", [
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}<assistant>",
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[Q]{{ m['content'] }}[A]{% else %}"
    "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
])  # fmt: skip
def test_of_a_longer_talk_the_last_turn_is_told_apart_where_the_first_alone_has_a_start_token(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template, tokenizer.bos_token = template, "Look"
    encoder, reading = make_reading("key", make=lambda _: tokenizer)
    talk = tokenizer.decode(rendered(encoder, "KEY:abcd", "red", "KEY:abc"))
    assert answered(encoder, reading, talk, "zq") == ["KEY:abc"]


def test_a_start_token_that_the_tokenizer_adds_begins_a_text():
    tokenizer = make_tokenizer(chat=False)
    start = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 0)])
    tokenizer.backend_tokenizer.post_processor = start
    encoder, reading = make_reading("text", make=lambda _: tokenizer)
    prompt, after = encoder.prompt("KEY:abc"), encoder.answer("red")[:-1]
    expected = ngram_windows(prompt, after, reading.size, reading._span(prompt), encoder.eos_id, on_text=True)
    assert read(reading, [*prompt.ids, *after])[0] == expected.tolist()


# --- a memory that reads every token ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(text=ENGLISH.filter(bool), answer=ENGLISH, chat=st.booleans(), cut=st.integers(0, 100))
def test_with_span_all_tokens_read_the_ngrams_of_the_published_hash(text, answer, chat, cut):
    encoder, addresses = whole_text(chat)
    reading = WholeText(encoder, addresses)
    prompt, ids = encoder.prompt(text), encoded(encoder, answer)
    windows = ngram_windows(prompt, ids, reading.size, addresses.span(prompt), encoder.eos_id, on_text=True)
    every = [*prompt.ids, *ids]
    for layer in addresses.config.layer_ids:
        sizes = [size for heads in addresses.hasher.primes[layer] for size in heads]
        published = addresses.hasher.indices(np.array([every]), layer)[0] + np.cumsum([0, *sizes[:-1]])
        assert np.array_equal(addresses.hasher.rows(windows, layer), published)
    found, numbers = read(reading, every)
    assert found == windows.tolist()
    last = np.array(numbers[:cut] or [reading.start])[-1:]
    for token, expected in zip(every[cut:], windows[cut:].tolist(), strict=True):
        (window,), last, (slow,) = reading.step(last, np.array([token]))
        assert slow or window.tolist() == expected


@cache
def whole_text(chat):
    encoder = PromptEncoder(make_tokenizer(chat))
    pairs = [(encoder.prompt(key), encoder.answer(value)) for key, value in FACTS.items()]
    return encoder, Addresses.of_training(variants.parse(PAPER, "test").config, encoder, pairs)


def test_a_memory_that_acts_on_a_key_itself_is_refused_where_the_prompt_comes_in_parts():
    config = replace(variants.parse(ENGRAM, "test").config, acts="everywhere")
    encoder, addresses = whole_text(chat=True)
    with pytest.raises(UsageError, match="span: key and acts: everywhere needs the whole prompt"):
        Reading(encoder, replace(addresses, config=config), addresses.span)
