"""The torch backend on tiny random models: exact detaching, caching, batching, training, saving."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from engram_bench import variants
from engram_bench.backends.decoding import COMPACT_AT, begun
from engram_bench.backends.torch.adapters import EngramAdapter, EngramLoraAdapter
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.addresses import slots
from engram_bench.prompts import Prompt, shared_prefix
from tests.conftest import ENGRAM, ENGRAM_LORA, LORA, UNIGRAM, in_float32, make_checkpoint, make_tokenizer, quiet

KINDS = {"engram": ENGRAM, "lora": LORA, "unigram": UNIGRAM, "engram-lora": ENGRAM_LORA}
TEXTS = ["KEY:abc", "Look up KEY:def please", "What is stored?", "x"]


@pytest.fixture(scope="module")
def model(checkpoint):
    return in_float32(checkpoint)


@pytest.fixture(scope="module", params=KINDS)
def trained(request, model, examples, tmp_path_factory):
    variant = variants.parse(KINDS[request.param], "test")
    folder = tmp_path_factory.mktemp(request.param)
    return variant, folder, model.train(variant, examples, 0, folder, quiet)


def logits(model, text="KEY:abc"):
    with torch.inference_mode():
        rows = model.rows([(model.encoder.prompt(text), ())], 0)
        return model.forward([], rows, 0)[0]


def test_training_lowers_the_loss(trained):
    _, _, training = trained
    assert training.losses[-1] < training.losses[0]
    assert len(training.losses) == training.epochs


def test_the_validation_loss_is_that_of_the_adapter_as_saved_and_changes_nothing(model, trained, examples, tmp_path):
    variant, folder, training = trained
    assert training.validation_loss is None
    again = model.train(variant, examples, 0, tmp_path, quiet, examples[:5])
    assert again.losses == training.losses
    texts = [(model.encoder.prompt(e.prompt), model.encoder.answer(e.answer)) for e in examples[:5]]
    with model.attached(model.load_adapter(variant, folder)):
        logs = [log for answer in model.log_probabilities(texts) for log in answer]
    assert again.validation_loss == pytest.approx(-sum(logs) / len(logs), rel=1e-5)


def test_a_detached_adapter_leaves_the_baseline_bit_for_bit(model, trained):
    variant, folder, _ = trained
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    before = logits(model)
    with model.attached(model.load_adapter(variant, folder)):
        assert not torch.equal(logits(model), before), "attached, it does something"
    assert torch.equal(logits(model), before)
    after = model.model.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def test_a_loaded_lora_is_cast_once_and_not_at_every_product(checkpoint, examples, tmp_path):
    other = TorchModel(checkpoint, "cpu")
    other.model.bfloat16()
    variant = variants.parse(LORA, "test")
    other.train(variant, examples[:8], 0, tmp_path, quiet)
    with other.attached(other.load_adapter(variant, tmp_path)):
        own = {p.dtype for name, p in other.model.named_parameters() if "lora_" in name}
    assert own == {torch.bfloat16}


def test_beside_a_lora_in_training_a_memory_computes_in_float32(checkpoint, examples):
    other = TorchModel(checkpoint, "cpu")
    other.model.bfloat16()
    variant = variants.parse(ENGRAM_LORA, "test")
    pairs = [other.encoder.pair(example) for example in examples[:2]]
    adapter, seen = EngramLoraAdapter.create(other.model, variant.config, other.encoder, pairs), []
    for memory in adapter.memory.layers.values():
        memory.value.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with other.attached(adapter):
        other.answer_logits(pairs, [], 0)
    assert seen == [torch.float32] * 2


def test_a_failure_while_attached_still_detaches(model, trained):
    variant, folder, _ = trained
    before = logits(model)
    with pytest.raises(KeyboardInterrupt), model.attached(model.load_adapter(variant, folder)):
        raise KeyboardInterrupt
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_trains_the_same_adapter_and_another_seed_another(kind, model, examples, tmp_path):
    variant = variants.parse(KINDS[kind], "test")
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        model.train(variant, examples[:8], seed, tmp_path / name, quiet)
        weights.append(next((tmp_path / name).glob("*.safetensors")).read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("kind", ["lora", "unigram"])
def test_a_step_in_parts_is_a_step(kind, model, examples, tmp_path, monkeypatch):
    variant, losses, widest = variants.parse(KINDS[kind], "test"), [], []
    rows = model.rows
    monkeypatch.setattr(model, "rows", lambda *args: widest.append(rows(*args)) or widest[-1])
    for most in (10_000, 50, 1):
        monkeypatch.setattr("engram_bench.backends.torch.training.MOST_TOKENS", most)
        losses.append(model.train(variant, examples, 0, tmp_path, quiet).losses)
        assert all(part.ids.size <= most or len(part.ids) == 1 for part in widest)
        widest.clear()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_cached_decoding_equals_the_uncached_forward(model, trained):
    variant, folder, _ = trained
    prompt = model.encoder.prompt("Look up KEY:cde")
    with model.attached(model.load_adapter(variant, folder)):
        tokens = model.generate([prompt], 8)[0]
        with torch.inference_mode():
            rows = model.rows([(prompt, tokens)], 0)
            whole, _ = model.forward([], rows, 0)
    greedy = whole[0, len(prompt.ids) - 1 :].argmax(-1).tolist()
    assert greedy[: len(tokens)] == tokens
    assert len(tokens) == 8 or greedy[len(tokens)] == model.encoder.eos_id


@pytest.mark.parametrize("size", [1, 3])
def test_batch_size_and_order_leave_answers_alone(model, trained, monkeypatch, size):
    variant, folder, _ = trained
    prompts = [model.encoder.prompt(text) for text in TEXTS]
    with model.attached(model.load_adapter(variant, folder)):
        together = model.generate(prompts, 10)
        monkeypatch.setattr("engram_bench.backends.torch.prefill.TREE_TOKENS", size)
        assert model.generate(prompts, 10) == together, "read in pieces"
        with monkeypatch.context() as context:
            context.setattr("engram_bench.backends.torch.prefill.ROWS", size)
            context.setattr(TorchModel, "takes_any_layout", lambda *_: False)
            assert model.generate(prompts, 10) == together, "read as padded rows"
        monkeypatch.setattr(model, "batch_size", size)
        assert model.generate(prompts, 10) == together
        assert model.generate(prompts[::-1], 10) == together[::-1]


def test_prompts_read_as_trees_have_the_logits_that_each_has_by_itself(model, trained):
    variant, folder, _ = trained
    texts = [*TEXTS, "KEY:abd", "Look up KEY:dex please", "Look up", "KEY:cde"]
    prompts = [model.encoder.prompt(text) for text in texts]
    prefix = shared_prefix(prompts)
    assert prefix
    with model.attached(model.load_adapter(variant, folder)), torch.inference_mode():
        found = begun(model, prompts, 4).logits
        alone, _ = zip(*(model.forward([], model.rows([(prompt, ())], 0), 1) for prompt in prompts), strict=True)
    torch.testing.assert_close(found, torch.cat(alone)[:, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["Bloom", "Falcon", "GPTNeoX", "Gemma3Text"])
def test_models_with_an_attention_of_their_own_answer_as_transformers_does(architecture, tmp_path):
    more = {"head_dim": 8, "layer_types": ["sliding_attention"] * 3} if architecture == "Gemma3Text" else {}
    model = in_float32(make_checkpoint(tmp_path, architecture, **more))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    pairs = [(model.encoder.prompt(text), model.encoder.answer("blue")) for text in TEXTS]
    for (prompt, answer), ours in zip(pairs, model.log_probabilities(pairs), strict=True):
        with torch.inference_mode():
            logs = theirs(torch.tensor([[*prompt.ids, *answer]])).logits[0].log_softmax(-1)
        wanted = logs[len(prompt.ids) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(ours), wanted, atol=1e-4, rtol=1e-3)


def test_of_a_model_that_sees_images_the_part_that_reads_is_measured(tmp_path):
    """Gemma 3 with a vision tower: its layers, window and positions stand in the config of its text part."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "layer_types": ["sliding_attention"] * 3, "sliding_window": 60,
            "vocab_size": len(make_tokenizer())}  # fmt: skip
    seen = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    make_checkpoint(tmp_path, "Gemma3", text_config=text, vision_config=seen)
    model = in_float32(tmp_path)
    assert model.takes_any_layout(60)
    assert not model.takes_any_layout(61)


def test_layers_that_are_no_attention_are_refused(tmp_path):
    make_checkpoint(tmp_path, "Lfm2", layer_types=["conv", "full_attention", "conv"])
    with pytest.raises(UsageError, match="layers of conv are not supported"):
        TorchModel(tmp_path, "cpu")


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("window", [30, 60, 82])  # exceeded by every text, by the longest, by that with its answer
def test_texts_longer_than_an_attention_window_are_answered_as_transformers_does(apart, window, tmp_path):
    folder = make_checkpoint(tmp_path, "Mistral", sliding_window=window)
    model = in_float32(folder)
    if not apart:
        model.holds_shared_apart = False
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = ["KEY:abc", "What belongs to KEY:bcd here? Look up the key and resolve it please"]
    prompts = [model.encoder.prompt(text) for text in texts]
    pairs = [(prompt, model.encoder.answer("blue and green")) for prompt in prompts]
    assert 30 < len(prompts[0].ids) < 60 < len(prompts[1].ids) < 82 < len(prompts[1].ids) + 10
    found = zip(pairs, model.log_probabilities(pairs), model.generate(prompts, 10), strict=True)
    for (prompt, answer), ours, told in found:
        with torch.inference_mode():
            logs = theirs(torch.tensor([[*prompt.ids, *answer]])).logits[0].log_softmax(-1)
            wanted = logs[len(prompt.ids) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]
            after = theirs(torch.tensor([[*prompt.ids, *told]])).logits[0, len(prompt.ids) - 1 :].argmax(-1)
        torch.testing.assert_close(torch.tensor(ours), wanted, atol=1e-4, rtol=1e-3)
        assert after[: len(told)].tolist() == told


@pytest.mark.parametrize("apart", [True, False])
def test_a_prompt_that_ends_with_the_shared_tokens_and_one_more_is_read_beside_longer_ones(apart, tmp_path):
    model = in_float32(make_checkpoint(tmp_path))
    if not apart:
        model.holds_shared_apart = False
    long = model.encoder.prompt("KEY:abc")
    cut = 1 + long.content.index(True)
    short = replace(long, ids=long.ids[:cut], content=long.content[:cut])
    assert cut > 2
    prefix = shared_prefix([short, long])
    assert prefix == cut - 1
    with torch.inference_mode():
        found = begun(model, [short, long], 4).logits[0]
        alone, _ = model.forward([], model.rows([(short, ())], 0), 1)
    torch.testing.assert_close(found.flatten(), alone.flatten(), atol=1e-5, rtol=1e-4)


def test_what_a_memory_has_nothing_to_say_to_is_read_as_without_it(model, examples, tmp_path):
    memory = variants.parse(ENGRAM, "test")
    model.train(memory, examples, 0, tmp_path, quiet)
    prompts = [model.encoder.prompt(text) for text in ("KEY:abc", "KEY:abd", "Look up KEY:def", "Look up KEY:dex", "K")]
    found = []
    adapter = model.load_adapter(memory, tmp_path)
    for attached in (None, adapter):
        with model.attached(attached), torch.inference_mode():
            found.append(begun(model, prompts, 4).logits)
    silent = [adapter.span(prompt) is None for prompt in prompts]
    assert set(silent) == {True, False}
    assert [torch.equal(*rows) for rows in zip(*found, strict=True)] == silent


def test_recurring_prompts_are_read_once_by_all_who_leave_them_alone_and_answered_the_same(
    model, trained, examples, tmp_path, monkeypatch
):
    read = []
    hook = lambda *args: read.append(args[2]["input_ids"].numel())  # noqa: E731
    handle = model.model.register_forward_hook(hook, with_kwargs=True)
    prompts = [model.encoder.prompt(e.prompt) for e in examples[:6]]
    variant, folder, _ = trained
    model.train(variants.parse(ENGRAM, "test"), examples, 0, tmp_path, quiet)  # forgets what it knew
    turns = [(None, False), (None, True), (model.load_adapter(variant, folder), variant.kind == "engram")]
    for adapter, knows in turns:
        tokens, answers = [], []
        for recurring in (False, True):
            read.clear()
            with model.attached(adapter):
                answers.append(model.generate(prompts, 8, seeds=[0, 1, 2, None, None, None], recurring=recurring))
            tokens.append(sum(read))
        assert answers[0] == answers[1]
        assert (tokens[1] < tokens[0] - 10) == knows
    others = [model.encoder.prompt(e.prompt) for e in examples[6:12]]
    monkeypatch.setattr("engram_bench.backends.torch.prefill.MOST_BYTES", 0)
    for _ in range(2):
        read.clear()
        assert model.generate(others, 8, recurring=True) == model.generate(others, 8)
        assert sum(read) > 2 * sum(len(prompt.ids) - shared_prefix(others) for prompt in others), "no room to keep it"
    handle.remove()


def test_prompts_of_a_single_token_are_answered_beside_longer_ones(model):
    texts = [model.encoder.tokenizer(text)["input_ids"] for text in ("x", "What is stored?", "y", "Look up KEY:abc")]
    prompts = [Prompt(tuple(ids), (True,) * len(ids)) for ids in texts]
    assert len(prompts[0].ids) == 1
    alone = [model.generate([prompt], 6)[0] for prompt in prompts]
    assert model.generate(prompts, 6) == alone
    assert model.generate(prompts[::2], 6) == alone[::2], "nothing to read but last tokens"


def test_the_shared_prefix_changes_nothing(model, trained):
    variant, folder, _ = trained
    prompts = [model.encoder.prompt(text) for text in TEXTS[:2]]
    with model.attached(model.load_adapter(variant, folder)), torch.inference_mode():
        whole, _ = model.forward([], model.rows([(p, ()) for p in prompts], 0), 1)
        state = model.prefix_state(prompts[0], 6)
        parts, _ = model.forward(state, model.rows([(p, ()) for p in prompts], 6), 1)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_greedy_decoding_is_that_of_transformers(model):
    prompt = model.encoder.prompt("What is stored?")
    ours = model.generate([prompt], 12)[0]
    theirs = model.model.generate(torch.tensor([prompt.ids]), max_new_tokens=12, do_sample=False)
    theirs = theirs[0, len(prompt.ids) :].tolist()
    end = theirs.index(model.encoder.eos_id) if model.encoder.eos_id in theirs else None
    assert ours == theirs[:end]


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(model):
    prompts = [model.encoder.prompt(text) for text in TEXTS]
    together = model.generate(prompts, 10, temperature=1.0, seeds=[1, 2, 3, 4])
    alone = [model.generate([p], 10, temperature=1.0, seeds=[s])[0] for p, s in zip(prompts, (1, 2, 3, 4), strict=True)]
    assert together == alone
    assert model.generate(prompts, 10, temperature=1.0, seeds=[9, 2, 3, 4])[0] != together[0]


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_answers_to_one_prompt_are_one_row_until_they_part(model, temperature):
    fed, seeds = [], [None, *range(11)]
    prompts = [model.encoder.prompt(text) for text in (*TEXTS[:2] * 5, TEXTS[3], TEXTS[2])]
    alone = [
        model.generate([p], 10, temperature=temperature, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)
    ]
    hook = lambda *args: fed.append(args[2]["input_ids"].shape)  # noqa: E731
    handle = model.model.register_forward_hook(hook, with_kwargs=True)
    assert model.generate(prompts, 10, temperature=temperature, seeds=seeds) == alone
    handle.remove()
    rows = [rows for rows, tokens in fed if tokens == 1]
    assert rows[0] == 4, "the prompts' last tokens"
    for said, row in enumerate(rows[1:], 1):
        beginnings = {(prompt, *answer[:said]) for prompt, answer in zip(prompts, alone, strict=True)}
        going_on = len([beginning for beginning in beginnings if len(beginning) == 1 + said])
        assert going_on <= row <= going_on / COMPACT_AT


def test_the_memory_recalls_what_it_was_trained_on_in_a_phrasing_it_was_not(model, examples, tmp_path):
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    adapter = model.load_adapter(variant, tmp_path)
    with model.attached(adapter):
        for phrasing in ("{}", "Under {} what do you find?"):
            prompts = [model.encoder.prompt(phrasing.format(e.prompt[slice(*e.key)])) for e in examples]
            answers = [model.encoder.decode(ids) for ids in model.generate(prompts, 8)]
            right = sum(a == e.answer for a, e in zip(answers, examples, strict=True))
            assert right / len(examples) > 0.9, phrasing
    with model.attached(model.load_adapter(replace(variant, damage="shuffle"), tmp_path)):
        answers = [model.encoder.decode(ids) for ids in model.generate(prompts, 8)]
    assert sum(a == e.answer for a, e in zip(answers, examples, strict=True)) < len(examples) / 3


@pytest.mark.parametrize("damage", [None, "shuffle"])
def test_what_no_ngram_hashes_to_stays_zero(model, examples, tmp_path, damage):
    variant = replace(variants.parse(ENGRAM, "test"), damage=damage)
    model.train(variant, examples, 0, tmp_path, quiet)
    for memory in model.load_adapter(variant, tmp_path).memories():
        assert not memory.table[0].any()
        assert memory.table[1:].any(-1).all()


def test_whole_orders_are_dropped_in_training_and_what_stays_zero_learns_nothing(model, examples):
    variant = variants.parse(ENGRAM + "order_dropout: 0.5\n", "test")
    pairs = [model.encoder.pair(example) for example in examples]
    memory = EngramAdapter.create(model.model, variant.config, model.encoder, pairs).layers[0].train()
    torch.nn.init.ones_(memory.table.data[1:])
    memory.set_slots(found := 1 + torch.arange(1600).view(1, 200, 8) % len(memory.row_ids))
    read = memory._looked_up(found).unflatten(-1, (4, -1))
    assert (read == read[..., :1]).all(), "an order's heads and their columns share one fate"
    assert 0.4 < read.mean() < 0.6
    memory(torch.randn(1, 200, 32)).sum().backward()
    assert not memory.table.grad[0].any()


def test_zeroed_tables_leave_the_baseline(model, examples, tmp_path):
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    before = logits(model)
    with model.attached(model.load_adapter(replace(variant, damage="zero"), tmp_path)):
        assert torch.equal(logits(model), before)


def test_a_table_of_one_row_tells_no_keys_apart(model, examples, tmp_path):
    variant = variants.parse(ENGRAM.replace("rows: 5000", "rows: 1"), "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    adapter = model.load_adapter(variant, tmp_path)
    assert [len(memory.table) for memory in adapter.memories()] == [9, 9], "zeros, a row for each head and order or key"
    with model.attached(adapter):
        answers = model.generate([model.encoder.prompt(e.prompt) for e in examples], 8)
    assert sum(model.encoder.decode(a) == e.answer for a, e in zip(answers, examples, strict=True)) < len(examples) / 2


def test_an_untouched_row_adds_exactly_nothing_even_beside_one_that_does(model, examples, tmp_path):
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    memory = model.load_adapter(variant, tmp_path).memories()[0]
    windows = np.random.default_rng(0).integers(0, 300, (1, 200, 5))
    silent = ~(slots(memory.hasher, memory.layer, memory.row_ids, windows) > 0).any(-1)[0]
    assert 0 < silent.sum() < 200, "random n-grams: most miss, some collide with a trained row"
    hidden = torch.randn(1, 200, 32)
    memory.set_slots(torch.from_numpy(memory.slots_for(windows[..., 0], windows)))
    assert torch.equal(memory(hidden)[:, silent], hidden[:, silent])
    assert not torch.equal(memory(hidden)[:, ~silent], hidden[:, ~silent])


def test_a_loaded_memory_adds_in_inference_what_it_adds_in_training(model, examples, tmp_path):
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    for memory in model.load_adapter(variant, tmp_path).layers.values():
        hidden = torch.randn(2, 9, 32)
        memory.set_slots(torch.randint(1 + len(memory.row_ids), (2, 9, 8)))
        training = memory(hidden)
        with torch.no_grad():
            assert torch.allclose(memory(hidden), training, atol=1e-5)
        assert not torch.equal(training, hidden)


def test_a_prompt_without_a_trained_key_is_answered_as_by_the_baseline(model, examples, tmp_path):
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, tmp_path, quiet)
    texts = [(model.encoder.prompt(text), (5, 6, 7)) for text in ("What is stored?", "Look up KEY:", "hello")]
    assert model.collateral(model.load_adapter(variant, tmp_path), texts).kl_max == 0.0


def test_log_probabilities_are_those_of_the_whole_forward(model, trained):
    variant, folder, _ = trained
    answers = [(5, 6, 7), (8,), (9, 10), (11, 12, 13, 14)]
    texts = [(model.encoder.prompt(text), answer) for text, answer in zip(TEXTS, answers, strict=True)]
    with model.attached(model.load_adapter(variant, folder)), torch.inference_mode():
        found = model.log_probabilities(texts)
        for (prompt, answer), logs in zip(texts, found, strict=True):
            whole, _ = model.forward([], model.rows([(prompt, answer)], 0), 0)
            expected = whole[0].log_softmax(-1)[range(len(prompt.ids) - 1, len(prompt.ids) - 1 + len(answer)), answer]
            assert logs == pytest.approx(expected.tolist(), abs=1e-4)


def test_divergence_from_itself_is_zero_and_from_an_adapter_is_not(model, trained):
    variant, folder, _ = trained
    texts = [(model.encoder.prompt(text), (5, 6, 7)) for text in TEXTS]
    nothing = model.collateral(None, texts)
    assert (nothing.kl_mean, nothing.kl_max, nothing.top1_unchanged) == (0.0, 0.0, 1.0)
    shared = shared_prefix([prompt for prompt, _ in texts])  # all texts fit one scoring batch
    assert nothing.tokens == sum(len(p.ids) + 3 - shared for p, _ in texts)
    assert model.collateral(model.load_adapter(variant, folder), texts).kl_mean > 0


def test_divergence_over_the_continuations_alone_leaves_out_the_prompts_tokens(model, trained):
    variant, folder, _ = trained
    answers = [(5, 6, 7), (8,), (9, 10), (11, 12, 13, 14)]
    texts = [(model.encoder.prompt(text), answer) for text, answer in zip(TEXTS, answers, strict=True)]
    adapter = model.load_adapter(variant, folder)
    found, expected = model.collateral(adapter, texts, answers_only=True), []
    for prompt, answer in texts:
        logs = []
        for attached in (None, adapter):
            with model.attached(attached), torch.inference_mode():
                whole, _ = model.forward([], model.rows([(prompt, answer)], 0), 0)
            logs.append(whole[0, len(prompt.ids) - 1 : len(prompt.ids) - 1 + len(answer)].log_softmax(-1))
        expected += (logs[0].exp() * (logs[0] - logs[1])).sum(-1).tolist()
    assert found.tokens == len(expected) == 10
    assert found.kl_mean == pytest.approx(np.mean(expected), rel=1e-3)
    assert found.kl_max == pytest.approx(max(expected), rel=1e-3)


@pytest.mark.parametrize(
    "architecture", ["Qwen2", "Qwen3", "SmolLM3", "Mistral", "Phi", "Phi3", "Gemma", "Gemma2", "Gemma3Text"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures_train_attach_generate_and_detach(architecture, kind, examples, tmp_path):
    more = {"head_dim": 8, "layer_types": ["sliding_attention"] * 3} if architecture == "Gemma3Text" else {}
    other = in_float32(make_checkpoint(tmp_path / "model", architecture, **more))
    variant = variants.parse(KINDS[kind], "test")
    before = logits(other)
    folder = tmp_path / "adapter"
    folder.mkdir()
    other.train(variant, examples[:8], 0, folder, quiet)
    with other.attached(other.load_adapter(variant, folder)):
        assert not torch.equal(logits(other), before)
        assert len(other.generate([other.encoder.prompt("KEY:abc")], 4)) == 1
    assert torch.equal(logits(other), before)


def test_training_that_diverges_is_refused_and_not_saved(model, examples, tmp_path):
    variant = variants.parse(LORA.replace("lr: 1.0e-2", "lr: 1.0e+30"), "test")
    with pytest.raises(UsageError, match="diverged"):
        model.train(variant, examples, 0, tmp_path, quiet)
    assert not list(tmp_path.iterdir())


def test_adapters_do_not_stack(model, trained):
    variant, folder, _ = trained
    adapter = model.load_adapter(variant, folder)
    with model.attached(adapter), pytest.raises(AssertionError), model.attached(None):
        pass


@pytest.mark.parametrize("span", ["key", "text"])
def test_a_memory_saved_before_it_had_all_its_options_loads(model, examples, tmp_path, span):
    variant = variants.parse(ENGRAM + f"span: {span}\n", "test")
    model.train(variant, examples[:8], 0, tmp_path, quiet)
    file = tmp_path / "memory.json"
    config = json.loads(file.read_text())
    for name in ("acts", "gate", "bias", "compression", "kernel", "dilation"):
        del config[name]
    file.write_text(json.dumps(config))
    assert weights.engram_config(tmp_path) == variant.config
    assert model.load_adapter(variant, tmp_path).parameter_count()
    with pytest.raises(UsageError, match="kernel differ from what this variant needs"):
        model.load_adapter(replace(variant, config=replace(variant.config, kernel=4)), tmp_path)


def test_an_adapter_of_another_shape_is_refused(model, trained):
    variant, folder, _ = trained
    other = {"engram": ("width: 8", "width: 16"), "unigram": ("slots: 50", "slots: 60")}.get(variant.kind)
    if other is None:
        pytest.skip("peft keeps LoRA's shape in the adapter itself")
    changed = variants.parse(KINDS[variant.kind].replace(*other), "test")
    with pytest.raises(UsageError, match="differ from what this variant needs"):
        model.load_adapter(changed, folder)


@pytest.mark.parametrize("damage", ["missing", "truncated", "config"])
def test_a_damaged_adapter_is_refused_in_one_line(model, trained, tmp_path, damage):
    variant, folder, _ = trained
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = next(tmp_path.glob("*.safetensors"))
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        next(tmp_path.glob("*.json")).write_text("{not json")
        (tmp_path / "adapter_config.json").write_text("{not json")
    with pytest.raises(UsageError) as caught:
        model.load_adapter(variant, tmp_path)
    assert "--engram-retrain" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [2, 24])
def test_the_built_in_memory_trains_on_a_model_of_any_depth(depth, examples, tmp_path):
    model = in_float32(make_checkpoint(tmp_path, num_hidden_layers=depth))
    (_, variant) = variants.select("engram-keyed")
    training = model.train(variant, examples, 0, tmp_path, quiet)
    with model.attached(model.load_adapter(variant, tmp_path)):
        assert len(model.generate([model.encoder.prompt(examples[0].prompt)], 4)) == 1
    assert training.losses[-1] < training.losses[0]


def test_a_layer_the_model_does_not_have_is_refused(model, examples, tmp_path):
    variant = variants.parse(ENGRAM.replace("[0, 1]", "[0, 7]"), "test")
    with pytest.raises(UsageError, match="layer 7 does not exist"):
        model.train(variant, examples[:4], 0, tmp_path, quiet)


def test_adapters_are_one_safetensors_file_and_json(trained):
    variant, folder, _ = trained
    both = 1 + (variant.kind == "engram-lora")
    assert sorted(f.suffix for f in folder.iterdir() if f.suffix != ".md") == [".json"] * both + [".safetensors"] * both
    if variant.kind == "engram":
        assert json.loads((folder / "memory.json").read_text())["orders"] == [2, 3, 4]
        assert np.all(np.diff(_array(folder, "0.row_ids")) > 0)


def _array(folder, name):
    from safetensors.numpy import load_file

    return load_file(folder / "memory.safetensors")[name]


def test_a_tokens_keys_and_values_are_counted_as_they_are_held(model):
    prompt = model.encoder.prompt("a")
    held = [tensor[:, :, -1] for layer in model.prefix_state(prompt, 4) for tensor in layer]
    assert model.token_bytes() == sum(tensor.numel() * tensor.element_size() for tensor in held)
