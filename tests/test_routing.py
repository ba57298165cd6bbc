"""The rules of the router, and that a memory behind it is silent where they say so."""

from dataclasses import replace

import pytest
import torch

from engram_bench import patterns, variants
from engram_bench.backends.torch import TorchModel
from engram_bench.memory import routing
from tests.conftest import ENGRAM, PATTERNS


@pytest.mark.parametrize(
    ("text", "confidence"),
    [
        ("CAPITAL:France", 1.0),
        ("hey, what's SYN:ab12cd", 1.0),
        ("What is the default port of HTTPS", 0.7),
        ("the capital of France?", 0.7),
        ("  tell me the capital of France ", 0.7),
        ("HOW MANY metres make a mile", 0.7),
        ("I know what you did", 0.0),
        ("namely this one", 0.0),
        ("how are you", 0.0),
        ("SUBCAPITAL_CAPITAL:France", 1.0),
        ("aCAPITAL:France", 0.0),
        ("A:B", 0.0),
        ("STD::vector", 0.0),
        ("for i in range(", 0.0),
        ("http://example.org", 0.0),
        ("HTTP://EXAMPLE.ORG", 0.0),
        ("Bug report: it closes", 0.0),
        ("NOTE: to be done", 0.0),
        ("", 0.0),
    ],
)
def test_rules(text, confidence):
    assert routing.confidence(text) == confidence


def test_a_bypassed_prompt_is_the_baselines_bit_for_bit_beside_one_that_is_not(checkpoint, tmp_path):
    model = TorchModel(checkpoint, "cpu")
    (tmp_path / "colours.yaml").write_text(PATTERNS)
    examples = patterns.load(tmp_path / "colours.yaml").training_examples()
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, tmp_path, lambda *_: None)
    key = examples[0].prompt[slice(*examples[0].key)]
    prompts = [model.encoder.prompt(text) for text in (key, key.lower())]  # the vocabulary is folded, the rules are not

    @torch.inference_mode()
    def logits(adapter):
        with model.attached(adapter):
            return model.forward([], model.rows([(prompt, ()) for prompt in prompts], 0), 0)[0]

    base = logits(None)
    plain = logits(model.load_adapter(variant, tmp_path))
    routed = logits(model.load_adapter(replace(variant, router="rules"), tmp_path))
    assert not torch.equal(plain[1], base[1]), "the memory alone knows the key in any case"
    assert torch.equal(routed[1], base[1])
    assert torch.equal(routed[0], plain[0])
    assert not torch.equal(routed[0], base[0])
