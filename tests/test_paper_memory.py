"""The paper's memory on a model: the published module's numbers, however a text reaches the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engram_bench import variants
from engram_bench.backends.decoding import Stem
from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.backends.torch.earlier import columns_back
from engram_bench.backends.torch.frozen import FrozenParts
from engram_bench.memory.torch import EPS, PaperEngram, injected
from tests.conftest import PAPER, in_float32, make_checkpoint, quiet

TEXTS = ["KEY:abc", "Look up KEY:def please", "What is stored?", "x", "KEY:abd", "Look up", "What is stored? KEY:cde"]
# What each memory differs in from the paper's.
OPTIONS = {
    "paper": {},
    "later layer": {"layers": [2]},
    "first layer": {"layers": [0, 2]},
    "no gate": {"gate": False},
    "no bias": {"bias": False},
    "no convolution": {"kernel": 0},
    "no compression": {"compression": False},
    "long convolution": {"kernel": 6, "dilation": 4},
    "text": {"span": "text", "acts": "everywhere"},
    "key": {"span": "key", "acts": "everywhere"},
    "answer": {"span": "key", "acts": "answer"},
}
MODELS = ["Llama", "as on an accelerator", "Mistral", "base"]


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    architecture = "Mistral" if request.param == "Mistral" else "Llama"
    own = in_float32(make_checkpoint(tmp_path_factory.mktemp("m"), architecture, chat=request.param != "base"))
    if request.param == "as on an accelerator":
        own.holds_shared_apart = False
    if request.param == "Mistral":
        own.model.config.sliding_window = 4
    return own


@pytest.fixture(scope="module")
def llama(checkpoint):
    return in_float32(checkpoint)


def with_numbers(model, options, examples):
    """A memory whose every parameter counts."""
    config = replace(variants.parse(PAPER, "test").config, **OPTIONS[options])
    pairs = [model.encoder.pair(example) for example in examples]
    torch.manual_seed(0)
    adapter = EngramAdapter.create(model.model, config, model.encoder, pairs)
    make_every_number_count(adapter)
    return adapter


def make_every_number_count(adapter):
    for memory in adapter.layers.values():
        for parameter in memory.parameters():
            torch.nn.init.normal_(parameter.data[1:] if parameter is memory.table else parameter.data, std=0.5)


def uncached(model, texts):
    """Logits of all tokens of each text by itself, in one forward: [tokens, vocabulary] each."""
    return [model.forward([], model.rows([text], 0), 0)[0][0] for text in texts]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def published(memory, hasher):
    """`PaperEngram` with the numbers of a memory; rows that this does not store are zero."""
    module = PaperEngram(hasher, memory.layer, memory.value.out_features, memory.table.shape[1], len(memory.conv))
    names = {"key": "key_proj", "value": "value_proj", "key_norm": "norm_key", "query_norm": "norm_query"}
    with torch.no_grad():
        module.table.weight.zero_()[torch.from_numpy(memory.row_ids)] = memory.table[1:]
        for ours, theirs in {**names, "conv_norm": "conv_norm"}.items():
            getattr(module, theirs).load_state_dict(getattr(memory, ours).state_dict())
        module.norm_key.eps = module.norm_query.eps = EPS  # hidden states of a tiny model are not much larger
        module.conv.weight.copy_(memory.conv.T[:, None])
    return module


@torch.no_grad()
def test_its_numbers_are_those_of_the_published_module(model, examples):
    adapter = with_numbers(model, "paper", examples)
    modules = {layer: published(memory, adapter.addresses.hasher) for layer, memory in adapter.layers.items()}
    for text in TEXTS:
        prompt, answer = model.encoder.prompt(text), model.encoder.answer("blue")
        ids = torch.tensor([[*prompt.ids, *answer]])
        hooks = {n: lambda hidden, m=module, ids=ids: hidden + m(hidden, ids) for n, module in modules.items()}
        with injected(model.model, hooks):
            (expected,) = uncached(model, [(prompt, answer)])
        (untouched,) = uncached(model, [(prompt, answer)])
        with model.attached(adapter):
            (found,) = uncached(model, [(prompt, answer)])
        assert_close(found, expected)
        assert (found - untouched).abs().mean() > 0.1


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_prompts_read_together_and_answers_decoded_in_steps_have_the_logits_of_each_by_itself(model, examples, options):
    """As trees or as padded rows, behind shared tokens or not, in every step, after rows were dropped and copied."""
    adapter = with_numbers(model, options, examples)
    prompts = [model.encoder.prompt(text) for text in TEXTS]
    answers = [model.encoder.answer(value)[:4] for value in ("blue", "x = 5:", "KEY:abc", "red", "green", "x", "one")]
    order = np.array([3, 0, 1, 2, 4, 6, 6])  # of rows, after the second step
    steps = min(len(answer) for answer in answers)
    assert steps >= 2
    with model.attached(adapter):
        alone = uncached(model, [(p, a) for p, a in zip(prompts, answers, strict=True)])
        for prefix in {0, model.shared(prompts, max(len(p.ids) + 4 for p in prompts))}:
            for layouts in (TorchModel.takes_any_layout, lambda *_: False):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(TorchModel, "takes_any_layout", layouts)
                    stem = Stem(range(len(prompts)), prefix, model.prefix_state(prompts[0], prefix))
                    batch = model.begin(prompts, len(prompts), [stem], 4)
                    rows, whole = (
                        np.arange(len(prompts)),
                        [model.windows(p, a) for p, a in zip(prompts, answers, strict=True)],
                    )
                    for step in range(steps):
                        for row, logits in zip(rows, batch.logits, strict=True):
                            assert_close(logits, alone[row][len(prompts[row].ids) - 1 + step])
                        if step == 1:
                            rows = order
                            batch.keep(rows)
                        seen = np.stack([whole[row][len(prompts[row].ids) + step] for row in rows])
                        batch.advance(np.array([answers[row][step] for row in rows]), seen)


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_and_gradients_in_training_are_those_of_the_whole_model(model, examples, options):
    adapter = with_numbers(model, options, examples)
    pairs = [model.encoder.pair(example) for example in examples]
    parameters = [parameter for group in adapter.parameter_groups() for parameter in group["params"]]
    with model.attached(adapter):
        frozen = FrozenParts(model, adapter, adapter.first_layer, model.shared_by(pairs), pairs)
        for batch in (pairs[:7], pairs[3:4], pairs[-5:]):
            whole, parts = model.answer_logits(batch, [], 0), frozen.answer_logits(batch)
            assert_close(parts[0], whole[0])
            gradients = [
                torch.autograd.grad(torch.nn.functional.cross_entropy(logits, tokens), parameters)
                for logits, tokens in (whole, parts)
            ]
            for one, other in zip(*gradients, strict=True):
                assert one.abs().max() > 1e-5
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("options", OPTIONS)
def test_it_learns_is_saved_and_comes_off(llama, examples, options, tmp_path):
    paper = variants.parse(PAPER, "test")
    variant = replace(paper, config=replace(paper.config, **OPTIONS[options]))
    asked = [llama.encoder.prompt(example.prompt) for example in examples[:4]]
    before = llama.generate(asked, 6)
    training = llama.train(variant, examples, 0, tmp_path, quiet, examples[:4], ["What is stored?", "KEY:abc!"])
    assert training.losses[-1] < training.losses[0]
    assert training.replay == (1 if variant.config.keyed else 2)
    adapter = llama.load_adapter(variant, tmp_path)
    texts = [(llama.encoder.prompt(e.prompt), llama.encoder.answer(e.answer)) for e in examples[:4]]
    with llama.attached(adapter):
        logs = [log for answer in llama.log_probabilities(texts) for log in answer]
        llama.generate(asked[:1], 1)
        assert bool(adapter.gates()) == variant.config.gate
    assert training.validation_loss == pytest.approx(-sum(logs) / len(logs), rel=1e-4)
    assert llama.generate(asked, 6) == before


def test_prompts_read_for_another_adapter_are_answered_the_same(llama, examples):
    """By a memory that leaves them alone, though its convolution reads what it computed for earlier tokens."""
    config = replace(variants.parse(PAPER, "test").config, span="key", acts="answer")
    pairs = [llama.encoder.pair(example) for example in examples]
    prompts = [llama.encoder.prompt(example.prompt) for example in examples[:6]]
    llama._kept_prompts.clear()
    for layers in ([1, 2], None, [2], [0, 1, 2]):
        adapter = None
        if layers:
            adapter = EngramAdapter.create(llama.model, replace(config, layers=layers), llama.encoder, pairs)
            make_every_number_count(adapter)
        with llama.attached(adapter):
            assert llama.generate(prompts, 6, recurring=True) == llama.generate(prompts, 6)
    assert llama._kept_prompts


def test_it_acts_on_the_template_as_its_file_says(llama, examples):
    prompt = llama.encoder.prompt("KEY:abc")
    start, end = prompt.content.index(True), len(prompt.ids) - prompt.content[::-1].index(True)
    for options, first in (("paper", 0), ("text", start), ("answer", len(prompt.ids) - 1)):
        adapter, seen = with_numbers(llama, options, examples), []
        hook = llama.model.model.layers[-1].register_forward_hook(lambda *args, seen=seen: seen.append(args[2][0]))
        with torch.no_grad():
            uncached(llama, [(prompt, ())])
            with llama.attached(adapter):
                uncached(llama, [(prompt, ())])
        hook.remove()
        untouched, touched = seen
        changed = (touched - untouched).abs().amax(-1).nonzero().flatten().tolist()
        assert changed == list(range(first, len(prompt.ids)))
        assert adapter.acts_on_template == (options == "paper")
        assert start < end


def test_a_tap_is_found_through_padding_and_branches():
    mask = np.array([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert columns_back(mask, 2, [3, 1]).tolist() == [[[-1, 1], [0, 4]], [[1, 3], [2, 4]]]
    tree = np.array([[[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]])  # after a shared token, two that follow the first
    assert columns_back(tree, 3, [2, 1]).tolist() == [[[-1, 0], [0, 1], [0, 1]]]
