"""The memory under transformers' own generate: with and without KV cache, padding, batches, sampling, beam search."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from engram_bench import variants
from engram_bench.errors import UsageError
from engram_bench.pretrained import EngramMemory
from tests.conftest import ENGRAM, ENGRAM_LORA, in_float32, make_checkpoint, quiet

ARCHITECTURES = ["Llama", "Qwen2", "Phi", "Gemma"]
TEXTS = ["KEY:abc", "Look up KEY:def please", "What is stored?", "x", "KEY:hij and KEY:jkl, which?", "hello KEY:zzz"]
WAYS = [{"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}]
prompts = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def parts(request, examples, tmp_path_factory):
    """(transformers' model, its tokenizer, the memory on it, our backend, the memory in our backend)"""
    folder = make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    ours, saved = in_float32(folder), tmp_path_factory.mktemp("memory")
    ours.train(variants.parse(ENGRAM, "test"), examples, 0, saved, quiet)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    memory = EngramMemory.from_pretrained(saved, model, tokenizer)
    return model, tokenizer, memory, ours, ours.load_writable(saved).adapter


def inputs(tokenizer, texts):
    talks = [[{"role": "user", "content": text}] for text in texts]
    rendered = [tokenizer.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in talks]
    return tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)


def generated(parts, texts, **options):
    model, tokenizer, memory, *_ = parts
    batch = inputs(tokenizer, texts)
    torch.manual_seed(0)
    with memory.attached():
        made = model.generate(**batch, max_new_tokens=8, **options)[:, batch["input_ids"].shape[1] :]
    return [memory.encoder.decode(row.tolist()) for row in made]


def test_a_memory_and_the_lora_it_was_trained_with_are_those_of_the_bench(examples, tmp_path):
    ours, saved = in_float32(make_checkpoint(tmp_path / "model")), tmp_path / "both"
    saved.mkdir()
    variant = variants.parse(ENGRAM_LORA, "test")
    ours.train(variant, examples, 0, saved, quiet)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="trained together with the LoRA beside it; load it first"):
        EngramMemory.from_pretrained(saved, model, tokenizer)
    with pytest.raises(UsageError, match="takes no facts"):
        ours.load_writable(saved)
    tuned = PeftModel.from_pretrained(model, saved)
    prompt = ours.encoder.prompt("KEY:abc")
    with torch.no_grad(), EngramMemory.from_pretrained(saved, tuned, tokenizer).attached():
        found = tuned(torch.tensor([prompt.ids])).logits
    with torch.no_grad(), ours.attached(ours.load_adapter(variant, saved)):
        expected, _ = ours.forward([], ours.rows([(prompt, ())], 0), 0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


random_batches = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@random_batches
@given(texts=prompts)
def test_greedy_answers_are_those_of_the_bench(parts, texts):
    *_, ours, adapter = parts
    with ours.attached(adapter):
        expected = [ours.encoder.decode(a) for a in ours.generate([ours.encoder.prompt(t) for t in texts], 8)]
    assert generated(parts, texts, do_sample=False) == expected


@random_batches
@given(
    texts=prompts, options=st.sampled_from([{"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}])
)
def test_cache_or_none_beams_and_samples_are_the_same(parts, texts, options):
    assert generated(parts, texts, **options) == generated(parts, texts, use_cache=False, **options)


@random_batches
@given(texts=prompts)
def test_the_uncached_forward_gives_the_logits_of_each_step(parts, texts):
    model, tokenizer, memory, *_ = parts
    batch = inputs(tokenizer, texts)
    with memory.attached(), torch.inference_mode():
        made = model.generate(
            **batch, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        mask = torch.cat([batch["attention_mask"], torch.ones(len(texts), len(made.logits))], dim=1).long()
        positions = (mask.cumsum(1) - 1).clip(min=0)
        whole = model(input_ids=made.sequences, attention_mask=mask, position_ids=positions, use_cache=False).logits
    steps = torch.stack(made.logits, dim=1)
    start = batch["input_ids"].shape[1] - 1
    ended = (made.sequences[:, start + 1 :] == tokenizer.eos_token_id).int()
    live = ended.cumsum(1) - ended == 0  # what follows an ended answer is padding
    torch.testing.assert_close(whole[:, start:-1][live], steps[live], atol=1e-4, rtol=1e-3)


def test_the_memory_acts_on_keys_in_padded_batches_and_on_nothing_else(parts):
    model, tokenizer, memory, *_ = parts
    batch = inputs(tokenizer, TEXTS)
    start = batch["input_ids"].shape[1]
    made = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, start:]
    plain = [memory.encoder.decode(row.tolist()) for row in made]
    known = [memory.adapter.span(memory.encoder.prompt(text)) is not None for text in TEXTS]
    changed = [a != b for a, b in zip(generated(parts, TEXTS, do_sample=False), plain, strict=True)]
    assert changed == known
    assert 2 <= sum(known) <= 4


def test_the_last_question_of_a_longer_talk_is_answered_as_in_the_bench(parts):
    model, tokenizer, memory, ours, adapter = parts
    talk = [{"role": "user", "content": "KEY:def"}, {"role": "assistant", "content": "yes"}]
    talk = [*talk, {"role": "user", "content": "Look up KEY:abc"}]
    batch = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = ours.encoder.prompt("Look up KEY:abc", earlier=[("KEY:def", "yes")])
    assert batch["input_ids"][0].tolist() == list(prompt.ids)
    with memory.attached():
        made = model.generate(**batch, max_new_tokens=8, do_sample=False)[0, len(prompt.ids) :]
    with ours.attached(adapter):
        assert memory.encoder.decode(made.tolist()) == ours.encoder.decode(ours.generate([prompt], 8)[0])


def test_saving_and_loading_changes_nothing(parts, tmp_path):
    model, tokenizer, memory, *_ = parts
    memory.save_pretrained(tmp_path / "new")
    assert sorted(f.suffix for f in (tmp_path / "new").iterdir()) == [".json", ".safetensors"]
    again = EngramMemory.from_pretrained(tmp_path / "new", model, tokenizer)
    changed = (model, tokenizer, again, *parts[3:])
    assert generated(changed, TEXTS, do_sample=False) == generated(parts, TEXTS, do_sample=False)


def test_under_a_peft_model_answers_are_those_without_it(parts):
    """A LoRA starts as zeros, so a fresh one changes nothing; PEFT's generate calls the model inside its wrapper."""
    import peft

    model, tokenizer, memory, *_ = parts
    expected = generated(parts, TEXTS, do_sample=False)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    try:
        around = EngramMemory(wrapped, memory.encoder, memory.adapter)
        assert generated((wrapped, tokenizer, around, *parts[3:]), TEXTS, do_sample=False) == expected
        with around.attached():
            logits = wrapped(**inputs(tokenizer, TEXTS[:1])).logits
    finally:
        wrapped.unload()
    with memory.attached():
        assert torch.equal(logits, model(**inputs(tokenizer, TEXTS[:1])).logits)


def test_a_memory_is_not_attached_twice(parts):
    model, _, memory, *_ = parts
    other = EngramMemory(model, memory.encoder, memory.adapter)
    with memory.attached(), pytest.raises(UsageError, match="is attached already"), other.attached():
        pass
    with other.attached():
        pass


def test_threads_that_share_a_model_get_their_own_answers(parts):
    model, tokenizer, memory, *_ = parts
    asked = [TEXTS[n % len(TEXTS)] for n in range(24)]
    expected = [generated(parts, [text], do_sample=False) for text in TEXTS]

    def answer(text):
        batch = inputs(tokenizer, [text])
        made = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
        return [memory.encoder.decode(row.tolist()) for row in made]

    with memory.attached(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, asked))
    assert found == [expected[n % len(TEXTS)] for n in range(24)]


def test_what_cannot_be_is_refused(parts, tmp_path):
    model, tokenizer, memory, *_ = parts
    with pytest.raises(UsageError, match="no memory here"):
        EngramMemory.from_pretrained(tmp_path, model, tokenizer)
    memory.save_pretrained(tmp_path)
    wider = type(model)(type(model.config)(**{**model.config.to_dict(), "hidden_size": 64, "head_dim": 16}))
    with pytest.raises(UsageError, match="does not fit the model"):
        EngramMemory.from_pretrained(tmp_path, wider, tokenizer)
