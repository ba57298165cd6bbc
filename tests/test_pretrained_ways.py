"""The memory under every way of calling a transformers model: the answers of the plain uncached forward, or refused."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompileConfig,
    ContinuousBatchingConfig,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    StaticCache,
    pipeline,
)

from engram_bench import variants
from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.errors import UsageError
from engram_bench.pretrained import EngramMemory
from tests.conftest import ENGRAM, PAPER, in_float32, make_checkpoint, quiet

NEW = 6
TEXTS = [
    "KEY:abc",
    "What is stored under KEY:def?",
    "What is stored?",
    "x",
    "KEY:hij and KEY:jkl, which?\nAnswer:",
    "KEY:fgh =",
    "key  :\n\n ABC",
    "KEY:defé?",
]
OPENED, AFTER = "<|end|>\n<|start|>user\n", "<|end|>\n<|start|>assistant\n"
SIZE = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"  # the name before 5.23
MIXED = ["sliding_attention", "full_attention"] * 2
TEXT = ENGRAM + "span: text\n"
KINDS = {
    "chat": (ENGRAM, True),
    "chat, all text": (TEXT, True),
    "base": (ENGRAM, False),
    "base, all text": (TEXT, False),
    "paper": (PAPER, True),
    "base, paper": (PAPER, False),
    "paper, all text": (PAPER.replace("span: all", "span: text"), True),
}


def make_parts(folder, variant, chat, examples, **more):
    """(model, tokenizer, memory)"""
    make_checkpoint(folder / "model", **more)
    if not chat:
        (folder / "model" / "chat_template.jinja").unlink()
    ours, saved = in_float32(folder / "model"), folder / "memory"
    saved.mkdir()
    ours.train(variants.parse(variant, "test"), examples, 0, saved, quiet)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    memory = EngramMemory.from_pretrained(saved, model, tokenizer)
    for layer in memory.adapter.layers.values() if memory.adapter.config.kernel else ():
        torch.nn.init.normal_(layer.conv.data)  # training leaves it near its zeros
    return model, tokenizer, memory


@pytest.fixture(scope="module")
def all_parts(examples, tmp_path_factory):
    return cache(lambda name: make_parts(tmp_path_factory.mktemp("m"), *KINDS[name], examples))


@pytest.fixture(params=KINDS)
def parts(request, all_parts):
    return all_parts(request.param)


def turn(memory, text):
    """A later turn of a talk."""
    first, chat = memory.encoder.prompt(text), memory.encoder.header_ids
    start = first.content.index(True)
    text = memory.encoder.tokenizer.decode([*chat, *first.ids[start:]])
    return f"<|end|>{text}" if chat else f"\n{text}"


def prompts(memory, texts, raw=False):
    tokenizer = memory.encoder.tokenizer
    whole = [text if raw else tokenizer.decode(memory.encoder.prompt(text).ids) for text in texts]
    return tokenizer(whole, return_tensors="pt", padding=True, add_special_tokens=False)


@torch.inference_mode()
def check(model, made, mask):
    """`made`'s logits are those of one uncached forward for each row, without its padding; `mask`: of the prompts."""
    steps = torch.stack(made.logits, dim=1)
    start = made.sequences.shape[1] - steps.shape[1]
    for row, real, own in zip(made.sequences, mask, steps, strict=True):
        answer = row[start:].tolist()
        count = answer.index(1) + 1 if 1 in answer else len(answer)
        ids = torch.cat([row[:start][real.bool()], row[start : start + count]])
        whole = model(input_ids=ids[None], use_cache=False).logits[0, -count - 1 : -1]
        torch.testing.assert_close(own[:count], whole, atol=1e-4, rtol=1e-3)


def answered(model, batch, **options):
    return model.generate(
        **batch, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )


def next_turn(tokenizer, made, mask, texts):
    """The inputs of a second turn: all ids so far, the new turn padded on its left, what follows an answer hidden."""
    start = mask.shape[1]
    ended = (made.sequences[:, start:] == tokenizer.eos_token_id).long()
    live = ended.cumsum(1) - ended == 0
    more = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    ids = torch.cat([made.sequences, more["input_ids"]], dim=1)
    return {"input_ids": ids, "attention_mask": torch.cat([mask, live.long(), more["attention_mask"]], dim=1)}


@settings(deadline=None)
@given(data=st.data())
def test_every_way_gives_the_answers_of_the_uncached_forward(all_parts, data):
    model, tokenizer, memory = all_parts(data.draw(st.sampled_from(sorted(KINDS))))
    texts = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
    batch = prompts(memory, texts, data.draw(st.booleans()))
    length = batch["input_ids"].shape[1]
    kind = data.draw(st.sampled_from(["none", "own", "static", "begun", "begun, static", "chunks", "lookup"]))
    threads = data.draw(st.sampled_from([1, 1, 1, 2]))

    def options():
        if kind == "none":
            return {"use_cache": False}
        if kind == "static":
            return {"cache_implementation": "static"}
        if kind == "chunks":
            return {"prefill_chunk_size": chunk}
        if kind == "lookup":
            return {"prompt_lookup_num_tokens": 3}
        if kind.startswith("begun"):
            cache = StaticCache(model.config, 200) if "static" in kind else DynamicCache(config=model.config)
            for a, b in itertools.pairwise([0, *cuts]):
                mask = batch["attention_mask"][:, :b]
                places = (mask.cumsum(1) - 1).clip(min=0)[:, a:]
                model(batch["input_ids"][:, a:b], attention_mask=mask, position_ids=places, past_key_values=cache)
            return {"past_key_values": cache}
        return {}

    chunk = data.draw(st.integers(1, length + 1)) if kind == "chunks" else None
    cuts = data.draw(st.sets(st.integers(1, length - 1), max_size=3)) if kind.startswith("begun") and length > 1 else ()
    cuts = sorted(cuts)
    if kind == "lookup":
        batch = {name: value[:1] for name, value in batch.items()}
    with memory.attached(), torch.inference_mode(), ThreadPoolExecutor(threads) as pool:
        for made in pool.map(lambda _: answered(model, batch, **options()), range(threads)):
            check(model, made, batch["attention_mask"])
        if kind not in ("none", "static", "lookup") and data.draw(st.booleans()):
            again = data.draw(st.lists(st.sampled_from(TEXTS), min_size=len(texts), max_size=len(texts)))
            later = next_turn(tokenizer, made, batch["attention_mask"], [turn(memory, text) for text in again])
            made = answered(model, later, past_key_values=made.past_key_values)
            check(model, made, later["attention_mask"])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}])
def test_beams_are_those_without_a_cache(parts, options, cache):
    model, _, memory = parts
    batch = prompts(memory, TEXTS[:3])
    with memory.attached():
        made, plain = (
            model.generate(**batch, max_new_tokens=NEW, do_sample=False, **options, **more)
            for more in (cache, {"use_cache": False})
        )
    assert made.tolist() == plain.tolist()


def test_samples_are_those_without_a_cache(parts):
    model, _, memory = parts
    batch = prompts(memory, TEXTS[:3])
    made = []
    with memory.attached():
        for more in ({}, {"use_cache": False}):
            torch.manual_seed(0)
            made += [
                model.generate(**batch, max_new_tokens=NEW, do_sample=True, num_return_sequences=2, **more).tolist()
            ]
    assert made[0] == made[1]


@pytest.mark.parametrize("more", [{}, {"attention_mask": None}])
def test_padding_on_the_right_changes_nothing(parts, more):
    model, tokenizer, memory = parts
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS[:3]]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    with memory.attached(), torch.inference_mode():
        together = model(**{**batch, **more}).logits
        for ids, own in zip(rows, together, strict=True):
            torch.testing.assert_close(own[: len(ids)], model(torch.tensor([ids])).logits[0], atol=1e-4, rtol=1e-3)


def test_raw_text_is_answered_and_scored(all_parts):
    """The value of a trained key is likelier with the memory, after the key alone and behind other words."""
    model, tokenizer, memory = all_parts("chat")
    value = tokenizer("red", add_special_tokens=False)["input_ids"]

    def score(text):
        ids = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], *value]])
        logits = model(ids).logits[0, -len(value) - 1 : -1].log_softmax(-1)
        return logits.gather(1, torch.tensor(value)[:, None]).sum().item()

    for text in ("KEY:abc", "What is stored under KEY:abc?", "The key is KEY:abc.\nAnswer:"):
        with torch.inference_mode():
            plain = score(text)
            with memory.attached():
                assert score(text) > plain + 0.5
    with torch.inference_mode():
        plain = score("What is stored?")
        with memory.attached():
            assert score("What is stored?") == plain


def test_the_pipeline_answers_as_generate_does(all_parts):
    model, tokenizer, memory = all_parts("chat")
    asked = pipeline("text-generation", model=model, tokenizer=tokenizer)
    with memory.attached():
        found = asked(
            [{"role": "user", "content": "KEY:abc"}], max_new_tokens=NEW, do_sample=False, return_full_text=False
        )[0]["generated_text"]
        batch = prompts(memory, ["KEY:abc"])
        made = model.generate(**batch, max_new_tokens=NEW, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert found == tokenizer.decode(made, skip_special_tokens=True)
    assert found != ""


@pytest.mark.parametrize("options", [{"assistant_early_exit": 1}, {"assistant_model": "model"}])
def test_assisted_decoding_gives_the_plain_answers(parts, options, tmp_path):
    model, _, memory = parts
    if "assistant_model" in options:
        helper = AutoModelForCausalLM.from_pretrained(
            make_checkpoint(tmp_path, num_hidden_layers=1), dtype=torch.float32
        )
        options = {"assistant_model": helper.eval()}
    with memory.attached():
        for text in TEXTS[:3]:
            batch = prompts(memory, [text])
            made = model.generate(**batch, max_new_tokens=NEW, do_sample=False, **options)
            assert made.tolist() == model.generate(**batch, max_new_tokens=NEW, do_sample=False).tolist()


@pytest.fixture(scope="module", params=itertools.product([["sliding_attention"] * 3, MIXED], [ENGRAM, PAPER]))
def sliding(request, examples, tmp_path_factory):
    """A model whose layers see the last eight tokens, and one of such layers and others."""
    types, variant = request.param
    more = {"num_hidden_layers": len(types), "layer_types": types, "use_sliding_window": True}
    folder = tmp_path_factory.mktemp("sliding")
    return make_parts(
        folder, variant, True, examples, architecture="Qwen2", sliding_window=8, max_window_layers=0, **more
    )


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}])
@pytest.mark.parametrize("raw", [False, True])
def test_sliding_windows(sliding, options, raw):
    model, _, memory = sliding
    batch = prompts(memory, TEXTS[:3], raw)
    assert True in DynamicCache(config=model.config).is_sliding
    with memory.attached():
        check(model, answered(model, batch, **options), batch["attention_mask"])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("texts", [("KEY:abc", "xx", "?re"), (f"{OPENED}KEY:abc{AFTER[:-4]}", "x" * 90, AFTER[-4:])])
def test_cached_tokens_that_the_mask_hides_later_are_not_read(parts, texts, static):
    """Such as what stands behind an ended answer in a batch: here it would make another word of the key."""
    model, tokenizer, memory = parts
    first, hidden, last = (tokenizer(t, return_tensors="pt", add_special_tokens=False)["input_ids"] for t in texts)
    ids = torch.cat([first, hidden, last], dim=1)
    mask = torch.cat([torch.ones_like(first), torch.zeros_like(hidden), torch.ones_like(last)], dim=1)
    cache = StaticCache(model.config, 200) if static else DynamicCache(config=model.config)
    with memory.attached(), torch.inference_mode():
        model(ids[:, : -last.shape[1]], past_key_values=cache)
        check(model, answered(model, {"input_ids": ids, "attention_mask": mask}, past_key_values=cache), mask)


LINEAR = {
    "Mamba": {"state_size": 4},
    "Lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
}


@pytest.mark.parametrize("architecture", LINEAR)
def test_models_whose_layers_keep_a_state_instead_of_tokens(all_parts, architecture, examples, tmp_path):
    """The harness does not run such models; the memory here is one of random numbers."""
    folder = make_checkpoint(tmp_path, architecture, **LINEAR[architecture])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = all_parts("chat")[2].encoder
    pairs = [encoder.pair(example) for example in examples]
    adapter = EngramAdapter.create(model, variants.parse(ENGRAM, "test").config, encoder, pairs)
    torch.manual_seed(0)
    for layer in adapter.layers.values():
        layer.table.data[1:].normal_()
    memory = EngramMemory(model, encoder, adapter)
    batch = prompts(memory, TEXTS[:3])
    with memory.attached():
        made = answered(model, batch)
        check(model, made, batch["attention_mask"])
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(made.logits, answered(model, batch).logits, strict=False))
    cache = model(batch["input_ids"], use_cache=True)
    cache = {name: cache[name] for name in ("past_key_values", "cache_params") if name in cache}
    with memory.attached(), pytest.raises(UsageError, match="make the cache with the memory attached"):
        model(batch["input_ids"], **cache)


def test_a_copied_cache_serves_several_talks(parts):
    model, _, memory = parts
    batch = prompts(memory, TEXTS[:1])
    cut = batch["input_ids"].shape[1] // 2
    cache = DynamicCache(config=model.config)
    with memory.attached(), torch.inference_mode():
        model(batch["input_ids"][:, :cut], past_key_values=cache)
        for _ in range(2):
            made = answered(model, batch, past_key_values=copy.deepcopy(cache))
            check(model, made, batch["attention_mask"])


def test_a_compiled_model_has_the_memory_while_it_is_attached(all_parts):
    model, _, memory = all_parts("chat")
    ids = prompts(memory, ["KEY:abc"])["input_ids"]
    compiled = torch.compile(model, backend="eager")
    around = EngramMemory(compiled, memory.encoder, memory.adapter)
    with torch.inference_mode():
        plain = model(ids, use_cache=False).logits
        assert torch.equal(compiled(ids, use_cache=False).logits, plain)
        for attached in (memory.attached(), around.attached()):
            with attached:
                expected = model(ids, use_cache=False).logits
                assert torch.equal(compiled(ids, use_cache=False).logits, expected)
        assert not torch.equal(plain, expected)
        assert torch.equal(compiled(ids, use_cache=False).logits, plain)
        with memory.attached(), pytest.raises(Exception, match="an n-gram memory runs outside compiled code"):
            torch.compile(model, backend="eager", fullgraph=True)(ids, use_cache=False)


def test_generate_that_compiles_its_decoding_steps(all_parts):
    """As it does on an accelerator with a static cache."""
    model, _, memory = all_parts("chat")
    batch = prompts(memory, TEXTS[:2])
    compiling = CompileConfig(backend="eager")
    compiling._compile_all_devices = True
    with memory.attached():
        made = answered(model, batch, cache_implementation="static", compile_config=compiling)
        check(model, made, batch["attention_mask"])


BATCHING = {
    "in one go": {},
    "prompts in parts": {"max_batch_tokens": 8},
    "short pages, shared": {SIZE: 4, "num_blocks": 64},
    "short pages, not shared": {SIZE: 4, "num_blocks": 64, "allow_block_sharing": False},
    "too few pages for all": {SIZE: 4, "num_blocks": 40, "max_batch_tokens": 64},
}


def batched(model, ids, **config):
    config = ContinuousBatchingConfig(**{"num_blocks": 8, "max_batch_tokens": 256, **config})
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=1, pad_token_id=0)
    made = model.generate_batch(ids, settings, continuous_batching_config=config)
    return [request.generated_tokens for request in made.values()]


@torch.inference_mode()
def one_by_one(model, ids):
    """Answers of the uncached forward."""
    answers = []
    for row in ids:
        row = list(row)
        start = len(row)
        while len(row) < start + NEW and 1 not in row[start:]:
            row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        answers.append(row[start:])
    return answers


def id_rows(memory, texts=TEXTS):
    tokenizer = memory.encoder.tokenizer
    raw = tokenizer([*texts[:2]], add_special_tokens=False)["input_ids"]
    return [*[list(memory.encoder.prompt(text).ids) for text in texts], *raw]


def test_continuous_batching_answers_as_the_uncached_forward(parts):
    model, _, memory = parts
    ids = id_rows(memory, TEXTS[:5])
    ids += [[*ids[0], *one] for one in ids[:2]]  # a later turn, after a common beginning
    plain = one_by_one(model, ids)
    with memory.attached():
        expected = one_by_one(model, ids)
        assert expected != plain
        for name, config in BATCHING.items():
            assert batched(model, ids, **config) == expected, name
    assert batched(model, ids) == plain
    assert "init_continuous_batching" not in vars(model)


def test_a_cache_kept_for_later_batches_is_not_kept_across_memories(all_parts):
    model, _, memory = all_parts("chat")
    ids = id_rows(memory)
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256, **{SIZE: 4})
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=1, pad_token_id=0)

    def made():
        every = model.generate_batch(ids, settings, continuous_batching_config=batching, persistent_manager=True)
        return [request.generated_tokens for request in every.values()]

    plain = made()
    with memory.attached():
        expected = one_by_one(model, ids)
        assert made() == made() == expected != plain
    assert made() == plain
    model.destroy_cached_continuous_batching_manager()


def test_continuous_batching_in_batches_of_fixed_sizes(all_parts):
    """As it is where the model is compiled."""
    model, _, memory = all_parts("paper")
    ids = id_rows(memory, TEXTS[:3])
    with memory.attached():
        compiling = {"varlen_compile_config": CompileConfig(backend="eager")}
        assert batched(model, ids, **compiling) == one_by_one(model, ids)


def test_continuous_batching_with_sliding_windows(sliding):
    model, _, memory = sliding
    ids = id_rows(memory, TEXTS[:3])
    with memory.attached():
        if set(model.config.layer_types) == {"sliding_attention"}:
            with pytest.raises(UsageError, match="needs a layer without a sliding window"):
                batched(model, ids)
        else:
            assert batched(model, ids, max_batch_tokens=16) == one_by_one(model, ids)


@pytest.mark.parametrize(
    ("settings", "batching", "message"),
    [
        (
            {"num_return_sequences": 2, "do_sample": True},
            {},
            "one answer for each prompt; in place of num_return_sequences=2",
        ),
        ({}, {"cpu_offload_space": 0.01}, "leave cpu_offload_space at 0"),
    ],
)
def test_what_it_cannot_follow_in_continuous_batching_is_refused(all_parts, settings, batching, message):
    model, _, memory = all_parts("chat")
    settings = GenerationConfig(max_new_tokens=2, eos_token_id=1, pad_token_id=0, **settings)
    with memory.attached(), pytest.raises(UsageError, match=message):
        model.generate_batch([[5, 6, 7]], settings, continuous_batching_config=ContinuousBatchingConfig(**batching))


def test_a_cache_that_the_memory_has_not_seen_is_refused(parts):
    model, _, memory = parts
    ids = prompts(memory, TEXTS[:1])["input_ids"]
    other = EngramMemory(model, memory.encoder, memory.adapter)
    cache, late, foreign = (DynamicCache(config=model.config) for _ in range(3))
    with torch.inference_mode():
        model(ids[:, :-2], past_key_values=cache)
        with memory.attached():
            model(ids[:, :3], past_key_values=late)
        model(ids[:, 3:-2], past_key_values=late)
        with other.attached():
            model(ids[:, :-2], past_key_values=foreign)
        for given in (cache, late, foreign):
            with memory.attached(), pytest.raises(UsageError, match="make the cache with the memory attached"):
                model(ids[:, -2:], past_key_values=given)
            with memory.attached(), pytest.raises(UsageError, match="make the cache with the memory attached"):
                model.generate(ids, past_key_values=given, max_new_tokens=2)


def test_a_cache_that_was_reset_serves_another_memory(all_parts):
    model, _, memory = all_parts("chat")
    ids = prompts(memory, TEXTS[:1])["input_ids"]
    other, cache = EngramMemory(model, memory.encoder, memory.adapter), DynamicCache(config=model.config)
    with torch.inference_mode():
        with other.attached():
            model(ids, past_key_values=cache)
        cache.reset()
        if (
            cache.get_seq_length()
        ):  # transformers 5.17 sets the keys to zero and keeps them: no text can go on from that
            with memory.attached(), pytest.raises(UsageError, match="make the cache with the memory attached"):
                model(ids[:, :-2], past_key_values=cache)
            return
        with memory.attached():
            model(ids[:, :-2], past_key_values=cache)
            made = model(ids[:, -2:], past_key_values=cache).logits
            torch.testing.assert_close(made, model(ids, use_cache=False).logits[:, -2:], atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "base"])
def two(request, examples, tmp_path_factory):
    """(model, two memories of it, each of its own keys, and a key of each)"""
    first, second = (examples[: len(examples) // 2], examples[len(examples) // 2 :])
    assert not {e.prompt[slice(*e.key)] for e in first} & {e.prompt[slice(*e.key)] for e in second}
    model, tokenizer, one = make_parts(tmp_path_factory.mktemp("two"), ENGRAM, request.param, first)
    saved, ours = tmp_path_factory.mktemp("second"), in_float32(model.config.name_or_path)
    ours.train(variants.parse(ENGRAM, "test"), second, 1, saved, quiet)
    keys = [part[0].prompt[slice(*part[0].key)] for part in (first, second)]
    return model, one, EngramMemory.from_pretrained(saved, model, tokenizer), keys


@torch.inference_mode()
def test_of_two_memories_on_a_model_each_answers_for_its_own_keys(two):
    model, *memories, keys = two
    asked = [prompts(memories[0], [text])["input_ids"] for text in (*keys, "What is stored?")]
    plain = [model(ids).logits for ids in asked]
    alone = []
    for memory, ids in zip(memories, asked, strict=False):
        with memory.attached():
            alone.append(model(ids).logits)
    with memories[0].attached(), memories[1].attached():
        both = [model(ids).logits for ids in asked]
        for ids in asked:
            made = model.generate(ids, max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True)
            check(model, made, torch.ones_like(ids))
    assert all(torch.equal(a, b) for a, b in zip([*alone, plain[2]], both, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(alone, plain, strict=False))
    assert all(torch.equal(a, model(ids).logits) for a, ids in zip(plain, asked, strict=True))


@torch.inference_mode()
def test_two_memories_need_a_cache_that_both_have_seen(two):
    model, one, other, keys = two
    ids = prompts(one, keys[:1])["input_ids"]
    cache, shared = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with one.attached():
        model(ids[:, :-2], past_key_values=cache)
        with other.attached():
            model(ids[:, :-2], past_key_values=shared)
            made = model(ids[:, -2:], past_key_values=shared).logits
            torch.testing.assert_close(made, model(ids, use_cache=False).logits[:, -2:], atol=1e-4, rtol=1e-3)
            with pytest.raises(UsageError, match="make the cache with the memory attached"):
                model(ids[:, -2:], past_key_values=cache)
            shared.reset()
            if not shared.get_seq_length():
                model(ids[:, :-2], past_key_values=shared)
                assert torch.allclose(model(ids[:, -2:], past_key_values=shared).logits, made, atol=1e-4)


def test_what_it_cannot_read_is_refused(all_parts):
    model, _, memory = all_parts("chat")
    ids = prompts(memory, TEXTS[:1])["input_ids"]
    embeds = model.get_input_embeddings()(ids).detach()
    with memory.attached():
        for call in (model, model.generate):
            with pytest.raises(UsageError, match="pass the token ids"):
                call(inputs_embeds=embeds, **({"max_new_tokens": 2} if call == model.generate else {}))
        with pytest.raises(UsageError, match="input_ids has -100"):
            model(torch.full_like(ids, -100))
        places = torch.cat([torch.arange(3), torch.arange(ids.shape[1] - 3)])[None]
        blocks = torch.zeros(ids.shape[1], ids.shape[1], dtype=torch.bool)
        blocks[:3, :3], blocks[3:, 3:] = True, True
        for packed in (
            {"position_ids": places},
            {"attention_mask": blocks.tril()[None, None]},
            {"cu_seq_lens_q": torch.tensor([0, 3, ids.shape[1]])},
        ):
            with pytest.raises(UsageError, match="one text per row"):
                model(ids, **packed)
        with pytest.raises(UsageError, match="cannot use a cache of class EncoderDecoderCache"):
            model(ids, past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()))
        shown, cache = torch.ones_like(ids), DynamicCache(config=model.config)
        shown[0, 0] = 0
        model(ids, attention_mask=shown, past_key_values=cache)
        with pytest.raises(UsageError, match="pass the mask of then"):
            model(ids, attention_mask=torch.ones(1, 2 * ids.shape[1]), past_key_values=cache)


def test_a_model_with_a_tuned_prompt_is_refused(all_parts):
    """PEFT gives such a model embeddings instead of ids."""
    import peft

    model, _, memory = all_parts("chat")
    tuned = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    around = EngramMemory(tuned, memory.encoder, memory.adapter)
    with around.attached(), pytest.raises(UsageError, match="pass the token ids"):
        tuned(**prompts(memory, TEXTS[:1]))
    model.requires_grad_(True)


def test_a_tuple_instead_of_an_output_leaves_the_cache_whole(parts):
    model, _, memory = parts
    ids = prompts(memory, TEXTS[:1])["input_ids"]
    with memory.attached(), torch.inference_mode():
        _, cache = model(ids[:, :-1], return_dict=False, use_cache=True)
        last = model(ids[:, -1:], past_key_values=cache, return_dict=False)[0]
        torch.testing.assert_close(last[:, -1], model(ids, use_cache=False).logits[:, -1], atol=1e-4, rtol=1e-3)
