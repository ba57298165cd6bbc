"""Training a memory only on the tokens it acts on: same logits and gradients as the whole model, far less work."""

import time

import numpy as np
import pytest
import torch

from engram_bench import variants
from engram_bench.backends.torch import frozen as torch_frozen
from engram_bench.backends.torch.adapters import EngramAdapter, EngramLoraAdapter, UnigramAdapter
from engram_bench.backends.torch.frozen import FrozenParts
from engram_bench.backends.torch.hearing import HearingAdapter
from engram_bench.backends.torch.layout import packed
from engram_bench.backends.torch.peft_methods import LoraAdapter
from tests.conftest import ENGRAM, ENGRAM_LORA, LORA, PAPER, UNIGRAM, in_float32, make_checkpoint, quiet

READER = "rank: 2\nalpha: 4\ntraining: {epochs: 1, batch_size: 8, lr: 1.0e-2}"
MODELS = ["Llama", "Qwen2", "Phi", "Gemma", "Mistral", "as on an accelerator"]


@pytest.fixture(params=[*MODELS, "Llama, base", "Mistral, base", "as on an accelerator, base"])
def model(request, tmp_path):
    name, _, base = request.param.partition(", ")
    accelerated = name == "as on an accelerator"
    own = in_float32(make_checkpoint(tmp_path, "Llama" if accelerated else name, chat=not base))
    if accelerated:
        own.holds_shared_apart = False
    if name == "Mistral":
        own.model.config.sliding_window = 4
    return own


def pairs_of(model, examples):
    return [model.encoder.pair(example) for example in examples]


def with_numbers(model, span, layers, pairs):
    """A memory that adds something wherever it looks; span "names": one with a reader."""
    if span == "names":
        return hearing(model, layers, pairs)
    variant = variants.parse(ENGRAM.replace("[0, 1]", layers) + f"span: {span}\n", "test")
    torch.manual_seed(0)
    adapter = EngramAdapter.create(model.model, variant.config, model.encoder, pairs)
    for memory in adapter.layers.values():
        torch.nn.init.normal_(memory.table.data[1:])
    return adapter


def hearing(model, layers, pairs):
    text = f"name: hearing\nkind: engram-hearing\nabout: for tests\nfirst_layer: {layers[1]}\n{READER}"
    torch.manual_seed(0)
    adapter = HearingAdapter.create(model.model, variants.parse(text, "test").config, model.encoder, pairs)
    for parameter in adapter.reader.parts.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1)
    return adapter


def gradients(adapter, logits, tokens):
    trained = [p for group in adapter.parameter_groups() if group["tables"] for p in group["params"]]
    trained = trained or list(adapter.parameter_groups()[0]["params"])
    return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, tokens), trained)


@pytest.mark.parametrize("span", ["key", "text", "names"])
@pytest.mark.parametrize("layers", ["[0, 1]", "[1, 2]", "[2]"])
def test_logits_and_gradients_are_those_of_the_whole_model(model, examples, span, layers):
    pairs = pairs_of(model, examples)
    adapter = with_numbers(model, span, layers, pairs)
    prefix = model.shared_by(pairs)
    with model.attached(adapter):
        frozen = FrozenParts(model, adapter, adapter.first_layer, prefix, pairs)
        for batch in (pairs[:7], pairs[3:4], pairs[-5:]):
            state = model.prefix_state(pairs[0][0], prefix)
            whole, parts = model.answer_logits(batch, state, prefix), frozen.answer_logits(batch)
            assert torch.equal(whole[1], parts[1])
            assert torch.allclose(whole[0], parts[0], atol=1e-4)
            for one, other in zip(gradients(adapter, *whole), gradients(adapter, *parts), strict=True):
                assert one.abs().max() > (0 if span == "names" else 1e-4)
                assert torch.allclose(one, other, atol=1e-5)


KINDS = {
    "LoRA from layer 1": (LoraAdapter, LORA + "first_layer: 1\n"),
    "LoRA": (LoraAdapter, LORA),
    "paper": (EngramAdapter, PAPER),
    "both": (EngramLoraAdapter, ENGRAM_LORA),
    "single-token": (UnigramAdapter, UNIGRAM),
}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_logits_and_gradients_of_the_whole_model(model, examples, kind, monkeypatch):
    pairs = pairs_of(model, examples)
    monkeypatch.setattr(torch_frozen, "PACKED_TOKENS", 3 * max(len(prompt.ids) for prompt, _ in pairs))
    created, text = KINDS[kind]
    torch.manual_seed(0)
    adapter = created.create(model.model, variants.parse(text, "test").config, model.encoder, pairs)
    prefix = model.shared_by(pairs)
    with model.attached(adapter):
        trained = [p for group in adapter.parameter_groups() for p in group["params"]]
        for parameter in trained:
            torch.nn.init.normal_(parameter.data, std=0.1)
        frozen = FrozenParts(model, adapter, adapter.first_layer, prefix, pairs)
        assert frozen.packs == torch_frozen.packs(model, pairs) == model.takes_any_layout(0) * (model._window > 4)
        for batch in (pairs[:7], pairs[3:4], [*pairs[-5:], (pairs[0][0], pairs[0][1][:1])]):
            state = model.prefix_state(pairs[0][0], prefix)
            whole, parts = model.answer_logits(batch, state, prefix), frozen.answer_logits(batch)
            assert torch.equal(whole[1], parts[1])
            assert torch.allclose(whole[0], parts[0], atol=1e-4)
            own, other = (torch.autograd.grad(torch.nn.functional.cross_entropy(*found), trained)
                          for found in (whole, parts))  # fmt: skip
            assert all(torch.allclose(*both, atol=1e-5) for both in zip(own, other, strict=True))
            assert max(one.abs().max() for one in own) > 1e-4


def test_packed_texts_keep_their_order_see_themselves_and_the_prefix_and_leave_little_empty():
    rows = packed([(4, 2), (3, 1), (6, 1), (2, 2)], prefix=2, most=9)
    assert rows.positions.tolist() == [[2, 3, 4, 5, 2, 3, 4, 0], [2, 3, 4, 5, 6, 7, 2, 3]]
    assert rows.at.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15]
    assert np.flatnonzero(rows.places).tolist() == [2, 3, 6, 13, 14, 15]
    assert rows.sees[0, 5].tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0]
    assert rows.sees[1, 7].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert packed([(12, 1), (3, 1)], prefix=0, most=9).positions.shape == (2, 12)


def test_an_example_is_read_once_where_there_is_room_to_keep_it(checkpoint, examples, tmp_path, monkeypatch):
    model = in_float32(checkpoint)
    variant = variants.parse(ENGRAM.replace("[0, 1]", "[1]"), "test")
    tokens, losses = [], []
    model.model.get_input_embeddings().register_forward_hook(lambda *args: tokens[-1].append(args[1][0].numel()))
    for most in (0, torch_frozen.MOST_BYTES):
        monkeypatch.setattr(torch_frozen, "MOST_BYTES", most)
        tokens.append([])
        losses.append(model.train(variant, examples, 0, tmp_path, quiet).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert sum(tokens[0]) > 2 * sum(tokens[1])


def test_the_recorded_seconds_hold_all_that_was_read(checkpoint, examples, tmp_path, monkeypatch):
    model = in_float32(checkpoint)
    forwards = [0]
    monkeypatch.setattr(time, "perf_counter", lambda: forwards[0])  # a clock that each forward moves on
    model.model.register_forward_hook(lambda *_: forwards.append(forwards.pop() + 1))
    training = model.train(variants.parse(ENGRAM, "test"), examples, 0, tmp_path, quiet)
    steps = 12 * -(-len(examples) // 8)
    assert training.seconds == forwards[0] > steps
