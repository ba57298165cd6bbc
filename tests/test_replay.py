"""Replay in torch: the untouched model's distributions, the loss on them, and what they keep of the model."""

from itertools import product

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from engram_bench import variants
from engram_bench.backends import replay
from engram_bench.backends.base import adapter_class
from engram_bench.backends.torch.replay import distributions, divergences
from tests.conftest import ENGRAM, LORA, UNIGRAM, in_float32, make_checkpoint, quiet

KINDS = {"engram": ENGRAM, "lora": LORA, "unigram": UNIGRAM}
NAMING = "KEY:abc is a nice name"  # names a trained key
TEXTS = ["Look up the word KEY:abc please", NAMING, "What is stored?", "The capital of France is Paris."]
SURE = {"initializer_range": 0.3}  # a random model whose distributions are far from uniform


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return in_float32(make_checkpoint(tmp_path_factory.mktemp("sure"), **SURE))


def recipe(kind, training, **more):
    text = KINDS[kind]
    return variants.parse(
        text[: text.index("training")] + "".join(f"{k}: {v}\n" for k, v in more.items()) + f"training: {training}\n",
        "test",
    )


def test_answers_are_the_models_own_and_hold_end_of_text_only_where_they_end(model, monkeypatch):
    prompts = [model.encoder.prompt(text) for text in TEXTS[:2]]
    whole = model.generate(prompts, replay.REPLAY_TOKENS)
    assert replay.answered(model, TEXTS[:2]) == [(p, tuple(a)) for p, a in zip(prompts, whole, strict=True)]
    monkeypatch.setattr(model, "stop_ids", {whole[0][3]})
    end = whole[0].index(whole[0][3])
    ((_, answer),) = replay.answered(model, TEXTS[:1] * 2)
    assert answer == (*whole[0][:end], model.encoder.eos_id)


def test_what_is_kept_of_a_model_is_the_model_up_to_rounding(model, monkeypatch):
    stopping = replay.answered(model, TEXTS)[0][1][3]
    monkeypatch.setattr(model, "stop_ids", {stopping})
    pairs = replay.answered(model, TEXTS)
    assert {len(answer) for _, answer in pairs} > {replay.REPLAY_TOKENS}, "some end, some do not"
    targets = replay.targets(model, TEXTS)
    apart = distributions(lambda batch: model.answer_logits(batch, [], 0)[0], pairs)
    assert list(targets) == list(apart) == pairs
    for pair, found in product(pairs, (targets, apart)):
        kl = divergences(model.answer_logits([pair], [], 0)[0], found, [pair])
        assert len(kl) == len(pair[1])
        assert -1e-6 < kl.min() <= kl.max() < 1e-5


def test_the_divergence_and_its_gradient_are_those_of_torch():
    torch.manual_seed(0)
    pair, logits = (None, (1, 2, 3)), torch.randn(3, 50, requires_grad=True)
    targets = {pair: torch.randn(3, 50).log_softmax(-1).half().numpy()}
    untouched = torch.from_numpy(targets[pair]).float().log_softmax(-1)
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), untouched, reduction="none", log_target=True).sum(-1)
    ours = divergences(logits, targets, [pair])
    assert torch.allclose(ours, kl, atol=1e-6)
    weights = torch.tensor([1.0, 2.0, 3.0])
    gradients = (torch.autograd.grad(found @ weights, logits)[0] for found in (ours, kl))
    assert torch.allclose(*gradients, atol=1e-6)


def test_texts_that_do_not_fit_in_memory_are_left_out_and_not_computed(model, monkeypatch):
    size = 2 * replay.REPLAY_TOKENS * len(model.encoder.tokenizer)
    monkeypatch.setattr(replay, "MOST_BYTES", 2 * size)
    asked = replay.answered(model, TEXTS)
    assert len(asked) == 2
    assert list(replay.targets(model, TEXTS)) == asked
    assert {prompt for prompt, _ in asked} < {model.encoder.prompt(text) for text in TEXTS}


@pytest.mark.parametrize("kind", ["lora", "unigram"])
def test_replay_keeps_the_model_and_the_answers_are_learned_all_the_same(kind, model, examples, tmp_path):
    recipes = {"lora": "{epochs: 40, steps: [5, 120], batch_size: 8, lr: 1.0e-2}",
               "unigram": "{epochs: 30, batch_size: 8, lr: 2.0e-2, table_lr: 1.0e-2, clip: 1.0}"}  # fmt: skip
    variant, found, trainings = recipe(kind, recipes[kind]), [], []
    targets = replay.targets(model, TEXTS)
    texts = list(targets)
    for given in ((), TEXTS):
        trainings.append(model.train(variant, examples[:12], 0, tmp_path, quiet, replay=given))
        with model.attached(model.load_adapter(variant, tmp_path)), torch.inference_mode():
            found.append(divergences(model.answer_logits(texts, [], 0)[0], targets, texts).mean().item())
    without, with_replay = trainings
    assert found[1] < 0.7 * found[0]
    assert (without.replay, without.replay_kl, with_replay.replay) == (0, None, len(TEXTS))
    assert with_replay.replay_kl == pytest.approx(found[1], rel=0.3), "as measured in training, steps earlier"
    if kind == "lora":
        assert without.ended_early
        assert with_replay.ended_early


class Steps:
    """Parameters and gradients at the last optimizer step in the context."""

    def __enter__(self):
        self.handle = register_optimizer_step_pre_hook(self.record)
        return self

    def record(self, optimizer, *_):
        own = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters = [p.detach().clone() for p in own]
        self.gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in own]

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most_tokens", [1024, 30])
def test_a_steps_gradient_is_that_of_the_plain_loss(kind, most_tokens, model, examples, tmp_path, monkeypatch):
    monkeypatch.setattr("engram_bench.backends.torch.training.MOST_TOKENS", most_tokens)
    training = "{epochs: 12, batch_size: 8, lr: 1.0e-2, table_lr: 0.1, replay_weight: 0.7}"
    variant = recipe(kind, training, **({"order_dropout": 0.0} if kind == "engram" else {}))
    with Steps() as last:  # at the first, a new LoRA has no divergence
        model.train(variant, examples[:6], 0, tmp_path, quiet, replay=TEXTS[:2])  # all six and both in every step
    pairs, texts = [model.encoder.pair(e) for e in examples[:6]], replay.answered(model, TEXTS[:2])

    def logs(pair):
        prompt, answer = pair
        rows = model.rows([(prompt, answer[:-1])], 0)
        return model.forward([], rows, 0)[0][0, len(prompt.ids) - 1 :].log_softmax(-1)

    with torch.no_grad():
        untouched = torch.cat([logs(pair) for pair in texts])
    adapter = adapter_class(variant, "torch").create(model.model, variant.config, model.encoder, pairs)
    with model.attached(adapter):
        own = [p for group in adapter.parameter_groups() for p in group["params"]]
        for parameter, value in zip(own, last.parameters, strict=True):
            parameter.data.copy_(value)
        answers = torch.tensor([token for _, answer in pairs for token in answer])
        loss = cross_entropy(torch.cat([logs(pair) for pair in pairs]), answers)
        adapted = torch.cat([logs(pair) for pair in texts])
        kl = (untouched.exp() * (untouched - adapted)).sum(-1).mean()
        assert kl > 1e-3
        expected = torch.autograd.grad(loss + 0.7 * kl, own)
        alone = torch.autograd.grad(cross_entropy(torch.cat([logs(pair) for pair in pairs]), answers), own)
    assert sum((a - e).square().sum() for a, e in zip(alone, expected, strict=True)) > 1e-6
    for found, wanted in zip(last.gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4)


def test_a_keyed_memory_trains_only_on_texts_that_name_a_key(model, examples, tmp_path):
    variant, found = recipe("engram", "{epochs: 3, batch_size: 8, lr: 1.0e-2, table_lr: 0.3}"), {}
    for name, given in {"none": (), "no key": TEXTS[2:], "all": TEXTS, "named": TEXTS[:2]}.items():
        (tmp_path / name).mkdir()
        training = model.train(variant, examples, 0, tmp_path / name, quiet, replay=given)
        weights = load_file(next((tmp_path / name).glob("*.safetensors")))
        found[name] = {**weights, "texts": torch.tensor(training.replay)}
    exactly, nearly = {"atol": 0, "rtol": 0}, {"atol": 1e-3, "rtol": 1e-2}  # the texts are read in other batches
    torch.testing.assert_close(found["no key"], found["none"], **exactly)
    torch.testing.assert_close(found["all"], found["named"], **nearly)
    assert found["named"]["texts"] == 2
    with pytest.raises(AssertionError):
        torch.testing.assert_close({**found["named"], "texts": found["none"]["texts"]}, found["none"], **nearly)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero_trains_as_without_replay(kind, model, examples, tmp_path):
    losses = [
        model.train(recipe(kind, "{epochs: 2, batch_size: 8, lr: 1.0e-2, table_lr: 0.1, replay_weight: 0}"),
                    examples, 0, tmp_path, quiet, replay=given).losses
        for given in ((), TEXTS)
    ]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_text_in_a_memory_with_span_text_always_counts(model, examples, tmp_path):
    variant = recipe("engram", "{epochs: 1, batch_size: 8, lr: 1.0e-2, table_lr: 0.3}", span="text")
    assert model.train(variant, examples[:8], 0, tmp_path, quiet, replay=TEXTS).replay == len(TEXTS)


def test_trainings_on_the_same_texts_share_the_untouched_models_answers(model, monkeypatch):
    asked, answer = [], model.with_distributions
    monkeypatch.setattr(
        model, "with_distributions", lambda prompts, most: asked.append(len(prompts)) or answer(prompts, most)
    )
    untouched = replay.Untouched(model)
    first = untouched.on(TEXTS)
    assert untouched.on(TEXTS) is first
    assert untouched.on(TEXTS[:1]).keys() < first.keys()
    assert asked == [len(TEXTS), 1]
