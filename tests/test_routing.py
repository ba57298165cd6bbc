"""Routers that know no key, and a routed memory that stays inactive where its router finds no request."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import routing_table
from engram_bench import variants
from engram_bench.backends import routed
from engram_bench.data import patterns, prompt_sets
from engram_bench.data.training import TrainingSet
from engram_bench.errors import UsageError
from engram_bench.memory.routing import FILE, Router, confidence
from engram_bench.store import adapters, models
from tests.conftest import ENGRAM, PATTERNS, in_float32
from tests.running import ROOT


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("CAPITAL:France", 1.0),
        ("hey, what's SYN:ab12cd", 1.0),
        ("What is the capital of France?", 0.7),
        ("what's the default port of HTTPS", 0.7),
        ("What does GPU stand for?", 0.7),
        ("http://example.org", 0.0),
        ("HTTP://EXAMPLE.ORG", 0.0),
        ("Bug report: it closes", 0.0),
        ("Write a poem about cats", 0.0),
        ("How do I sort a list?", 0.0),
        ("", 0.0),
    ],
)
def test_rules(text, sure):
    assert confidence(text) == sure


def test_a_router_learns_what_tells_two_kinds_of_states_apart_and_counts_both_kinds_alike():
    draw = np.random.default_rng(0)

    def states(count, shift):  # one direction tells them apart, beside a larger one that does not
        found = draw.normal(size=(count, 16)).astype(np.float32) * np.array([1, 50, *[1] * 14], np.float32)
        found[:, 0] += shift
        return found + 1000

    router = Router.fitted(states(40, 4), states(400, -4))
    asked, others = router.confidence(states(200, 4)), router.confidence(states(200, -4))
    assert (asked >= 0.5).mean() > 0.98
    assert (others >= 0.5).mean() < 0.02
    assert abs(np.median(asked) - (1 - np.median(others))) < 0.1


def test_a_router_is_saved_whole(tmp_path):
    router = Router(np.arange(3, dtype=np.float32), np.array([0.5], np.float32))
    router.save(tmp_path)
    found = Router.load(tmp_path)
    assert found is not None
    assert np.array_equal(found.weight, router.weight)
    assert np.array_equal(found.bias, router.bias)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:20])
    assert Router.load(tmp_path) is None


def test_the_prompts_that_fit_a_router_judge_none():
    asking, others = prompt_sets.routing_development()
    for of in prompt_sets.ROUTING:
        assert {prompt.text for prompt in prompt_sets.routing(of)}.isdisjoint([*asking, *others])


TEXTS = ("KEY:abc", "What is KEY:abc?", "A much longer text, in which KEY:abc is only named.")


@pytest.fixture
def backend(checkpoint):
    return in_float32(checkpoint)


def test_hidden_states_are_what_the_layer_gets_whatever_is_attached_there(backend):
    import torch

    from engram_bench.memory.torch import decoder_layers, injected

    prompts = [backend.encoder.prompt(text) for text in TEXTS]
    layers = decoder_layers(backend.model)
    for layer in range(backend.depth):
        with injected(backend.model, {layer: lambda hidden: hidden + 1}):
            found = backend.hidden_states(prompts, layer)
        for prompt, own in zip(prompts, found, strict=True):
            seen = []
            hook = layers[layer].register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
            with torch.no_grad():
                backend.model(torch.tensor([prompt.ids]))
            hook.remove()
            assert np.allclose(seen[0][0, -1].float().numpy(), own, atol=1e-5)


def test_hidden_states_are_the_same_in_mlx(backend, checkpoint):
    pytest.importorskip("mlx.core", reason="MLX is not installed")
    from engram_bench.backends.mlx.backend import MlxModel

    other = MlxModel(checkpoint, "cpu")
    prompts = [backend.encoder.prompt(text) for text in TEXTS]
    found = other.hidden_states([other.encoder.prompt(text) for text in TEXTS], 1)
    assert np.allclose(found, backend.hidden_states(prompts, 1), rtol=1e-3, atol=1e-3)


@pytest.fixture
def keyed(backend, checkpoint, tmp_path, own_cache):
    """Trains the keyed memory of `PATTERNS` behind a router; returns its variant and folder."""
    (tmp_path / "colours.yaml").write_text(PATTERNS)
    examples = patterns.load(tmp_path / "colours.yaml").training_examples()
    variant = variants.parse(ENGRAM.replace("layers: [0, 1]", "layers: [1]"), "test")
    behind = replace(variant, name="tiny-routed", adapter_of=variant.name, router="learned")
    model, data = models.resolve(str(checkpoint)), TrainingSet("bare", tuple(examples))

    def ensure(one):
        return adapters.ensure(backend, model, one, data, 0, retrain=False, progress=lambda *_: None)

    return variant, behind, ensure


def test_a_routed_adapter_is_the_memorys_and_its_router_and_both_are_made_once(keyed):
    variant, behind, ensure = keyed
    first, second, alone = ensure(behind), ensure(behind), ensure(variant)
    assert (first.cached, second.cached, alone.cached) == (False, True, True)
    assert first.training == alone.training
    names = {file.name for file in alone.folder.iterdir()}
    assert {file.name for file in first.folder.iterdir()} == {*names, FILE}
    for name in names - {adapters.TRAINING}:
        assert (first.folder / name).read_bytes() == (alone.folder / name).read_bytes()


@pytest.mark.parametrize("missing", [True, False])
def test_an_adapter_without_a_router_of_this_model_is_refused(keyed, backend, missing):
    _, behind, ensure = keyed
    folder = ensure(behind).folder
    if missing:
        (folder / FILE).unlink()
    else:
        Router(np.zeros(3, np.float32), np.zeros(1, np.float32)).save(folder)
    with pytest.raises(UsageError, match=rf"{FILE}: no router for this model here; train it again"):
        backend.load_adapter(behind, folder)


def test_a_router_decides_by_the_hidden_state_before_the_memorys_first_layer(keyed, backend, tmp_path):
    variant, behind, ensure = keyed
    folder = ensure(behind).folder
    prompts = [backend.encoder.prompt(text) for text in TEXTS]
    states = backend.hidden_states(prompts, 1)
    direction = states[0] - states[2]
    middle = np.array([-direction @ (states[0] + states[2]) / 2], np.float32)
    Router(direction * 1e4, middle * 1e4).save(folder)
    spans = backend.load_adapter(behind, folder).span
    assert spans(prompts[0]) == backend.load_adapter(variant, folder).span(prompts[0])
    assert spans(prompts[2]) is None


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_a_bypassed_prompt_is_the_baselines_bit_for_bit_beside_one_that_is_not(keyed, backend, checkpoint, framework):
    variant, behind, ensure = keyed
    folder = ensure(behind).folder
    if framework == "mlx":
        pytest.importorskip("mlx.core", reason="MLX is not installed")
        from engram_bench.backends.mlx.backend import MlxModel

        backend = MlxModel(checkpoint, "cpu")
    prompts = [backend.encoder.prompt(text) for text in ("KEY:abc", "key:abc")]  # the rules know no key in lower case
    answer = backend.encoder.answer("red")

    def scores(adapter):
        with backend.attached(adapter):
            return backend.log_probabilities([(prompt, answer) for prompt in prompts])

    base = scores(None)
    plain = scores(backend.load_adapter(variant, folder))
    by_rules = scores(backend.load_adapter(replace(behind, router="rules"), folder))
    assert plain[1] != base[1], "the memory alone knows the key in any case"
    assert by_rules == [plain[0], base[1]]
    assert plain[0] != base[0]


def test_rules_and_a_learned_router_judge_many_prompts_at_once(keyed, backend):
    _, behind, ensure = keyed
    adapter = backend.load_adapter(behind, ensure(behind).folder)
    prompts = [backend.encoder.prompt(text) for text in (*TEXTS, TEXTS[0])]
    found = adapter.confidence(prompts)
    assert found[0] == found[3]
    assert all(0 <= sure <= 1 for sure in found)
    assert routed.rules(prompts) == [1.0, 1.0, 1.0, 1.0]


def test_the_page_shows_the_table_of_the_committed_run():
    table = routing_table.text(json.loads(routing_table.RESULTS.read_text(encoding="utf-8")))
    assert table in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
