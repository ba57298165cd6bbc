"""The router's rules, and a routed memory that stays inactive if the rules reject a prompt."""

from dataclasses import replace

import pytest
import yaml

from engram_bench import variants
from engram_bench.data import patterns, prompt_sets
from engram_bench.memory import routing
from tests.conftest import ENGRAM, PATTERNS


@pytest.mark.parametrize(
    ("text", "confidence"),
    [
        ("CAPITAL:France", 1.0),
        ("hey, what's SYN:ab12cd", 1.0),
        ("What is the default port of HTTPS", 0.7),
        ("the capital of France?", 0.7),
        ("for i in range(", 0.7),
        ("http://example.org", 0.0),
        ("HTTP://EXAMPLE.ORG", 0.0),
        ("Bug report: it closes", 0.0),
        ("NOTE: to be done", 0.0),
        ("undefine x", 0.0),
        ("What is the capital of happiness?", 0.0),
        ("", 0.0),
    ],
)
def test_rules(text, confidence):
    assert routing.confidence(text) == confidence


@pytest.mark.parametrize(
    ("asks", "only_looks_so"),
    [
        ("Fetch ISOTOPE:c14 for me", "ISOTOPE:c14:beta"),
        ("BATCH:7", "TODO:7 items are left"),
        ("What is the longest bridge?", "What is the best bridge to jump from?"),
        ("the inventor of the zipper", "The inventor of the zipper died poor."),
        ("Tell me the weight of a proton", "Tell me about the weight of a proton"),
        ("Who is the king of Spain?", "Who met the king of Spain?"),
        ("while queue and queue.pop(", "while queue and queue.pop() is None:"),
        ("How does x = y + continue?", "Explain how x = y + z can continue."),
        ("from secrets import", "from secrets import choice"),
        ("This fails: if y = 2:", "This fails: we are too late"),
        ("Please fix mylist.add(4)", "Please fix the lamp in my room"),
        ("octal: 9", "octal: the base of eight"),
        ("I want dot-case: Main Menu", "I want this: a main menu"),
        ("Please complete this line:\n\nresult = sorted(items,", "Is this all?\nhost = local\nport = 80"),
        ("Complete this: rev = s[::", "std::cout is slow"),
        ("who is the author of hamlet?", "who is the author of my misery?"),
        ("tyr: what is wrong?", "I can nto sleep at night"),
        ("dfe start(self)", "Registration form: send it by Friday"),
        ("How does x = [ go on?", "x = [1, 2, 3]"),
        ("This fails: import os from sys", "Which countries import oil from Russia?"),
        ("Replace let word = 3", "If we let x = 3, what is x squared?"),
        ("import numpy.random, how on?", "Can you import contacts.csv into Excel?"),
        ("DE phone: 0123 456", "Call me on my phone: 0123 456"),
    ],
)
def test_rules_tell_what_is_asked_from_what_only_looks_so(asks, only_looks_so):
    assert routing.confidence(asks) >= routing.THRESHOLD > routing.confidence(only_looks_so)


def test_rules_hold_on_the_prompts_they_were_written_on_which_are_not_those_that_judge_them():
    asking, others = (
        [entry for entries in yaml.safe_load(file.read_text(encoding="utf-8"))["prompts"].values() for entry in entries]
        for file in (prompt_sets.FOLDER / f"routing_development_{label}.yaml" for label in ("positive", "negative"))
    )
    asking = [entry["prompt"] for entry in asking]
    hits, false = (sum(routing.confidence(t) >= routing.THRESHOLD for t in texts) for texts in (asking, others))
    assert hits / len(asking) >= 0.95
    assert hits / (hits + false) >= 0.95
    for of in prompt_sets.ROUTING:
        assert {prompt.text for prompt in prompt_sets.routing(of)}.isdisjoint([*asking, *others])


def test_a_bypassed_prompt_is_the_baselines_bit_for_bit_beside_one_that_is_not(checkpoint, tmp_path):
    import torch

    from engram_bench.backends.torch.backend import TorchModel

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
