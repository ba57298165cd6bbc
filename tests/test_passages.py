"""Running text that holds keys and asks nothing: what counts as a false firing, and how far the text is changed."""

import json

import jsonschema
import numpy as np
import pytest
import torch

from engram_bench import variants
from engram_bench.data.prompt_sets import Passage
from engram_bench.run import passages
from tests.conftest import ENGRAM, LORA, PATTERNS, in_float32, make_checkpoint, needs_torch, quiet
from tests.running import run
from tests.test_report import SCHEMA

pytestmark = needs_torch

FOUND = Passage("prose with keys", "The label on the jar reads KEY:abc and nobody knows why.", ("KEY:abc",))
TWICE = Passage("prose with keys", "One card says KEY:bcd, the other KEY:cde. Both are old.", ("KEY:bcd", "KEY:cde"))
MISSED = Passage("prose with keys", "There is a card with MYKEY:abcs on the shelf above the stove.", ("KEY:abc",))


@pytest.fixture(scope="module")
def long_checkpoint(tmp_path_factory):
    """A tiny model whose context takes a passage."""
    return make_checkpoint(tmp_path_factory.mktemp("long"), max_position_embeddings=4096)


@pytest.fixture(scope="module")
def model(long_checkpoint):
    return in_float32(long_checkpoint)


@pytest.fixture(scope="module")
def adapters(model, examples, tmp_path_factory):
    found = {}
    for name, text in (("engram", ENGRAM), ("lora", LORA)):
        variant, folder = variants.parse(text, "test"), tmp_path_factory.mktemp(name)
        model.train(variant, examples, 0, folder, quiet)
        found[name] = model.load_adapter(variant, folder)
    return found


def measured(model, adapter, *some, keyed, answer=(5, 6)):
    texts = [(model.encoder.prompt(passage.text), answer) for passage in some]
    return passages.measure(model, adapter, some, texts, keyed=keyed)


def test_a_memory_fires_once_in_each_passage_in_which_it_finds_a_key(model, adapters):
    found = measured(model, adapters["engram"], FOUND, TWICE, MISSED, keyed=True)
    words = sum(len(passage.text.split()) for passage in (FOUND, TWICE, MISSED))
    assert (found["words"], found["keys"], found["firings"]) == (words, 4, 2)
    assert found["firings_per_1000_words"] == pytest.approx(2000 / words)
    assert found["kl_mean"] > 0
    silent = measured(model, adapters["engram"], MISSED, keyed=True)
    assert (silent["firings"], silent["kl_max"], silent["top1_unchanged"]) == (0, 0, 1)


def test_what_looks_for_no_key_fires_nowhere_and_everywhere(model, adapters):
    found = measured(model, adapters["lora"], MISSED, keyed=False)
    assert (found["firings"], found["firings_per_1000_words"]) == (None, None)
    assert found["kl_mean"] > 0


def test_the_divergence_covers_the_continuation_and_its_end_alone(model, adapters):
    adapter, answer = adapters["engram"], (5, 6)
    found = measured(model, adapter, FOUND, keyed=True, answer=answer)
    prompt, logs = model.encoder.prompt(FOUND.text), []
    for attached in (None, adapter):
        with model.attached(attached), torch.inference_mode():
            whole, _ = model.forward([], model.rows([(prompt, answer)], 0), 0)
        logs.append(whole[0, len(prompt.ids) - 1 :].log_softmax(-1))
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).numpy()
    assert found["tokens"] == len(kl) == 3
    assert found["kl_mean"] == pytest.approx(np.mean(kl), rel=1e-3)
    empty = measured(model, adapter, FOUND, keyed=True, answer=())
    assert (empty["tokens"], empty["kl_mean"]) == (1, pytest.approx(kl[0], rel=1e-3))


def test_a_run_reports_both_kinds_of_text_for_every_adapter(long_checkpoint, checkpoint, tmp_path, own_cache):
    files = {name: tmp_path / f"{name}.yaml" for name in ("colours", "engram", "lora")}
    for file, text in zip(files.values(), (PATTERNS, ENGRAM, LORA), strict=True):
        file.write_text(text)

    def report(model, name):
        options = {"model": model, "patterns": files["colours"], "variants": f"{files['engram']},{files['lora']}"}
        options |= {"profile": "smoke", "backend": "cpu", "report": tmp_path / name}
        given = [word for option, value in options.items() for word in (f"--engram-{option}", value)]
        done = run("-k", "running_text_with_keys", *given)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, tmp_path / name / "latest"

    _, folder = report(long_checkpoint, "long")
    found = json.loads((folder / "report.json").read_text())
    jsonschema.validate(found, SCHEMA)
    rows = [(p["variant"], p["kind"], p["prompts"], p["keys"], p["firings"]) for p in found["passages"]]
    assert rows == [
        ("tiny-engram", "prose with keys", 1, 1, 1),
        ("tiny-engram", "code with keys", 1, 1, 1),
        ("tiny-lora", "prose with keys", 1, 1, None),
        ("tiny-lora", "code with keys", 1, 1, None),
    ]
    assert all(p["kl_mean"] > 0 for p in found["passages"])
    table = (folder / "report.md").read_text().split("## Collateral in running text")[1].split("\n## ")[0]
    assert table.count("looks for no key") == 2
    assert f"{1000 / found['passages'][0]['words']:.1f} (1)" in table
    told, _ = report(checkpoint, "short")
    assert "2 skipped" in told, "no passage fits a context of 256 tokens"
