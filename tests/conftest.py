"""Shared fixtures: tiny random checkpoints and a small pattern file, created for each session."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engram_bench.data import items, patterns

if TYPE_CHECKING:
    from engram_bench.backends.torch.backend import TorchModel

pytest_plugins = ["pytester", "_hypothesis_pytestplugin"]
os.environ["ENGRAM_BENCH_REASK"] = "1"  # a test that asks twice wants two answers, here and in the processes it starts
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")

TEMPLATE = (
    "{{ '<|start|>system\nYou are tiny.<|end|>\n' }}"
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "ACRONYM:GPU Graphics Processing Unit for i in range(len(items)): The capital of France is Paris.",
    "Look up the key and resolve it: what is stored? Fix: if x = 5: print('hello') snake_case get_user_name",
    "éàü ÉÀÜ naïve Straße 0123456789 [](){}<>!?;,.-_=+*/\\|@#$%^&~`\"' \n\t",
]
PATTERNS = """\
name: colours
description: Keys of colours, for tests.
version: "1.0"
examples:
""" + "".join(
    f'  - {{input: "KEY:{key}", output: "{value}"}}\n'
    for key, value in [
        ("abc", "red"), ("bcd", "blue"), ("cde", "green"), ("def", "black"), ("efg", "white"),
        ("fgh", "brown"), ("ghi", "pink"), ("hij", "grey"), ("ijk", "gold"), ("jkl", "teal"),
    ]
)  # fmt: skip
ENGRAM = """\
name: tiny-engram
kind: engram
about: a memory for tests
layers: [0, 1]
orders: [2, 3, 4]
heads: 2
rows: 5000
width: 8
training: {epochs: 12, batch_size: 8, lr: 1.0e-2, table_lr: 0.3}
"""
PAPER = """\
name: tiny-paper
kind: engram
about: the paper's memory, for tests
layers: [1, 2]
orders: [2, 3]
heads: 2
rows: 5000
width: 8
span: all
bias: true
kernel: 4
training: {epochs: 12, batch_size: 8, lr: 1.0e-2, table_lr: 0.3}
"""
ENGRAM_LORA = (
    PAPER.replace("paper", "engram-lora", 1).replace("kind: engram", "kind: engram-lora") + "rank: 4\nalpha: 8\n"
)
LORA = """\
name: tiny-lora
kind: lora
about: a LoRA for tests
rank: 4
alpha: 8
training: {epochs: 3, batch_size: 8, lr: 1.0e-2}
"""
UNIGRAM = """\
name: tiny-unigram
kind: unigram
about: a single-token memory for tests
slots: 50
training: {epochs: 2, batch_size: 8, lr: 1.0e-2, table_lr: 1.0e-2, clip: 1.0}
"""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Leaves out a module of tests that imports torch, itself or by what it imports, where torch is not installed."""
    report = yield
    if report.failed and "No module named 'torch'" in report.longreprtext:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, "Skipped: torch is not installed")
    return report


def quiet(*_: Any) -> None:
    """No progress."""


def make_tokenizer(chat: bool = True, size: int = 400) -> Any:
    """A byte-level BPE tokenizer of at most `size` tokens, trained on the corpus above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    if chat:
        fast.chat_template = TEMPLATE
    return fast


def make_checkpoint(folder: Path, architecture: str = "Llama", *, chat: bool = True, **more: Any) -> Path:
    """A random float32 model of three layers, saved with a tokenizer, with or without `chat`; `more` for its config."""
    import transformers

    torch = pytest.importorskip("torch")
    tokenizer = make_tokenizer(chat)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 500.0,  # no library's default, so that one that does not read it is found out
        "bos_token_id": 0,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    if architecture in ("Gemma", "Gemma2", "Qwen3"):  # the others follow from the hidden size
        shape["head_dim"] = 8
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**shape, **more})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.bfloat16().float().save_pretrained(folder)  # the same numbers in whatever dtype they are loaded
    tokenizer.save_pretrained(folder)
    return folder


def in_float32(folder: Path) -> TorchModel:
    """float32 on any CPU, so that what has to be equal can be asked to be."""
    from engram_bench.backends.torch.backend import TorchModel

    built = TorchModel(folder, "cpu")
    built.model.float()
    return built


@pytest.fixture(scope="module")
def all_in_float32() -> Iterator[None]:
    """The same for every model that is loaded meanwhile, on whatever device."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engram_bench.backends.torch.network.pick_dtype", lambda device: (torch.float32, "for tests"))
        yield


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[items.Example]:
    """The training examples of `PATTERNS`."""
    file = tmp_path_factory.mktemp("data") / "colours.yaml"
    file.write_text(PATTERNS)
    return patterns.load(file).training_examples()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that no other test sees."""
    monkeypatch.setenv("ENGRAM_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
