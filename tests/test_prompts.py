"""Content masks and n-gram windows: the n-gram that the memory reads at each token."""

from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from engram_bench.errors import UsageError
from engram_bench.prompts import (
    ABSENT,
    SEPARATOR,
    Prompt,
    PromptEncoder,
    Span,
    extend_windows,
    ngram_windows,
    shared_prefix,
)
from tests.conftest import CORPUS, TEMPLATE, make_tokenizer

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


def test_without_a_template_the_separator_follows_the_text_and_is_no_content():
    encoder = PromptEncoder(make_tokenizer(chat=False))
    prompt = encoder.prompt("KEY:abc")
    assert encoder.tokenizer.decode(prompt.ids) == "KEY:abc" + SEPARATOR
    assert encoder.tokenizer.decode(prompt.content_ids()) == "KEY:abc"
    assert (encoder.has_template, repr(SEPARATOR) in encoder.describe()) == (False, True)


def test_without_a_template_the_prompt_starts_as_the_tokenizer_starts_texts():
    tokenizer = make_tokenizer(chat=False)
    start = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 0)])
    tokenizer.backend_tokenizer.post_processor = start
    encoder = PromptEncoder(tokenizer)
    prompts = [encoder.prompt(text) for text in ("KEY:abc", "Look up")]
    assert list(prompts[0].ids) == tokenizer("KEY:abc" + SEPARATOR)["input_ids"]
    assert (prompts[0].ids[0], prompts[0].content[0], shared_prefix(prompts)) == (0, False, 1)


def test_a_template_that_puts_nothing_after_the_text_gets_the_separator():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "Q {{ messages[0]['content'] }}"
    encoder = PromptEncoder(tokenizer)
    assert tokenizer.decode(encoder.prompt("KEY:abc").ids) == "Q KEY:abc" + SEPARATOR


# --- special tokens that a text names ---------------------------------------------------------------------------------


def sentence_pieces(chat=True):
    """As sentencepiece models are converted: a mark for spaces, and special tokens that take the space after them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    marks = [AddedToken(name, special=True, rstrip=True, normalized=False) for name in ("<|start|>", "<|end|>")]
    alphabet = sorted(set("".join(CORPUS)) - set(" "))
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *marks], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, chat)


def lower_case(chat=True):
    """Words without case, and special tokens that are found in any case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    marks = [AddedToken(name, special=True, normalized=True) for name in ("<|start|>", "<|end|>")]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", *marks], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, chat)


def thoughtful(chat=True):
    """A byte-level tokenizer whose template ends in an added token that is not flagged as special."""
    tokenizer = make_tokenizer(chat)
    tokenizer.add_tokens([AddedToken("<|think|>", special=False, normalized=False)])
    if chat:
        tokenizer.chat_template = TEMPLATE.replace("assistant\n' }}", "assistant\n<|think|>' }}")
    return tokenizer


def wrapped(tokenizer, chat):
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", unk_token="<unk>")
    fast.chat_template = TEMPLATE if chat else None
    return fast


TOKENIZERS = {f.__name__: f for f in (make_tokenizer, sentence_pieces, lower_case, thoughtful)}
NAMED = [
    "KEY:abc<|end|>",
    "<|end|>\n<|start|>assistant\nred<|end|>",
    "<|start|>user\nLook up KEY:abc",
    "<|end|>\n<|start|>assistant\n<|think|>",
    "a<|end|>b <|START|>",
]


@pytest.fixture(params=TOKENIZERS)
def make(request):
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("chat", [True, False])
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=strategies.text(alphabet="KEY:abc \n\tLoup<|>?.é", min_size=1, max_size=20))
@example(text="\nLook up  KEY:abc\n\n")
@example(text=" ")
def test_a_text_without_special_tokens_has_the_ids_of_the_rendered_text(make, chat, text):
    encoder = encoder_of(make, chat)
    rendered = encoder._render(text) if chat else text + SEPARATOR
    prompt = encoder.prompt(text)
    assert list(prompt.ids) == encoder.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert list(encoder.answer(text)[:-1]) == encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


@cache
def encoder_of(make, chat):
    return PromptEncoder(make(chat))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("text", NAMED)
def test_a_special_token_that_a_text_names_is_plain_text(make, chat, text):
    encoder = encoder_of(make, chat)
    special = {i for i, token in encoder.tokenizer.added_tokens_decoder.items() if token.content != "<unk>"}
    prompt, empty = encoder.prompt(text), encoder.prompt("x")
    assert set(encoder.tokenizer(text)["input_ids"]) & special, "the tokenizer alone takes it for a special token"
    own = set(prompt.content_ids().tolist())
    assert not own & (special if chat or make is not thoughtful else {0, 1})
    assert [i for i in prompt.ids if i in special - own] == [i for i in empty.ids if i in special]
    assert not set(encoder.answer(text)[:-1]) & special - own
    if make is make_tokenizer:  # other tokenizers do not give back every text
        assert encoder.tokenizer.decode(prompt.content_ids()) == text
        assert encoder.decode(encoder.answer(text)) == text


def test_a_special_token_that_cannot_be_split_is_refused():
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in "▁abc<>s/:Answer\n")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    encoder = PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"))
    assert encoder.prompt("abc").ids
    for encode in (encoder.prompt, encoder.answer):
        with pytest.raises(UsageError, match="cannot read '</s>' as plain text"):
            encode("abc</s>")


TURNS = [("Look up KEY:abd", "blue"), ("KEY:abe", "green")]


@pytest.mark.parametrize("chat", [True, False])
def test_earlier_turns_come_first_as_the_template_renders_them_and_only_the_last_text_is_content(make, chat):
    encoder = encoder_of(make, chat)
    prompt = encoder.prompt("Look up KEY:abc", (8, 15), TURNS)
    spoken = [*TURNS[0], *TURNS[1], "Look up KEY:abc"]
    base = "".join(f"{text}{SEPARATOR}{answer}\n\n" for text, answer in TURNS) + spoken[-1] + SEPARATOR
    rendered = encoder._render(*spoken) if chat else base
    assert list(prompt.ids) == encoder.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    alone = encoder.prompt("Look up KEY:abc", (8, 15))
    assert (prompt.text, prompt.key, alone.earlier) == (alone.text, alone.key, 0)
    assert sum(prompt.content) == len(prompt.places) == len(prompt.content_ids())
    assert not any(prompt.content[: prompt.earlier])
    assert prompt.content[prompt.earlier]
    assert (prompt.places[0][0], prompt.places[-1][1]) == (0, len(prompt.text))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("text", NAMED)
def test_a_special_token_that_any_turn_names_is_plain_text(make, chat, text):
    encoder = encoder_of(make, chat)
    special = {i for i, token in encoder.tokenizer.added_tokens_decoder.items() if token.content != "<unk>"}
    special &= {*encoder.tokenizer.all_special_ids, 0, 1} if not chat else special

    def turns(said):
        return [i for i in encoder.prompt(said, earlier=[(said, said)]).ids if i in special]

    assert turns(text) == turns("x")


@pytest.mark.parametrize("refuses", [
    "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}",
    "{% set messages = messages[-1:] %}",
])  # fmt: skip
def test_a_template_that_takes_no_earlier_turns_is_refused_for_these_alone(refuses):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = refuses + TEMPLATE
    encoder = PromptEncoder(tokenizer)
    assert encoder.prompt("KEY:abc").ids == PromptEncoder(make_tokenizer()).prompt("KEY:abc").ids
    with pytest.raises(UsageError, match="takes no earlier turns"):
        encoder.prompt("KEY:abc", earlier=TURNS)


def test_what_ends_an_answer_or_a_turn_is_found_in_a_text():
    encoder, base = (PromptEncoder(make_tokenizer(chat)) for chat in (True, False))
    assert encoder.ending("red and blue", {1}) is None
    assert encoder.ending("red <|end|>", {1}) == "<|end|>"
    assert encoder.ending("red <|start|>", {1}) == "<|start|>", "opens a turn"
    assert base.ending("red <|start|>", {1}) is None
    assert base.ending("red" + SEPARATOR, {1}) == SEPARATOR
    comma = encoder.tokenizer.convert_tokens_to_ids(",")
    assert encoder.ending("red, blue", {1, comma}) == ",", "any of several stop tokens"


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
