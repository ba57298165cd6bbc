"""What a backend is: the whole contract between the harness and a machine-learning framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_bench.data.items import Example
from engram_bench.errors import UsageError
from engram_bench.prompts import Pair, Prompt, PromptEncoder, ngram_windows
from engram_bench.variants import Variant
from engram_bench.variants.kinds import KINDS

Text = tuple[Prompt, Sequence[int]]  # a prompt and the answer tokens that follow it
Progress = Callable[[str, int, int], None]  # (what, done, of how many)


@dataclass(frozen=True)
class Training:
    """What one training left behind.

    Attributes:
        seconds: spent training.
        losses: mean loss of the answer tokens in each epoch, in nats.
        validation_loss: the same after the last epoch, of trained items in phrasings neither trained nor asked; None
            where there were none.
    """

    seconds: float
    examples: int
    epochs: int
    losses: tuple[float, ...]
    validation_loss: float | None = None


@dataclass(frozen=True)
class Collateral:
    """How far an adapter moves the model on texts it was never trained on, over `tokens` tokens."""

    tokens: int
    kl_mean: float  # nats per token, KL(baseline || variant)
    kl_max: float
    top1_unchanged: float  # share of tokens whose most probable next token stays

    @classmethod
    def over(cls, kl: Sequence[NDArray[Any]], same: Sequence[NDArray[np.bool_]]) -> Collateral:
        """From batches of tokens: the divergence of each, and whether its most probable next token stays.

        Raises:
            UsageError: the adapter's outputs are not finite.
        """
        values = np.concatenate(kl).astype(np.float64)
        if not np.isfinite(values).all():
            raise UsageError("the adapter makes the model's outputs infinite or undefined; train it with a lower lr")
        # Rounding may leave a divergence a hair below zero.
        mean, most = max(0.0, float(values.mean())), max(0.0, float(values.max()))
        return cls(len(values), mean, most, float(np.concatenate(same).mean()))


class Adapter(Protocol):
    """What is put on a model, whatever its kind and framework.

    A framework's own adapters add what its forward and training need; only its backend module knows that part.

    Attributes:
        ngram_size: N, how many tokens the windows it is given hold; 1 where it looks up no n-grams.
        acts_on_template: whether it changes the tokens that all prompts share.
        acts_on_text: whether it changes the user's text, and not only the prompt's last token and the answer.
    """

    ngram_size: int
    acts_on_template: bool
    acts_on_text: bool

    def span(self, prompt: Prompt) -> tuple[int, int] | None:
        """First and last + 1 of the content tokens that it looks at; None: none of them."""
        ...

    def found(self, prompt: Prompt) -> list[list[int]] | None:
        """Token ids of the n-grams whose rows the answer's first token reads, shortest first.

        None from an adapter that looks up no n-grams.
        """
        ...

    def gates(self) -> list[float]:
        """How open each gate was at the last token of the last forward, 0 to 1, by layer; empty without gates."""
        ...

    def train(self, mode: bool) -> None:
        """Switch dropout on for training, or off."""
        ...

    def parameter_count(self) -> int:
        """How many numbers training can change."""
        ...

    def save(self, folder: Path) -> None:
        """Write its files into an existing folder."""
        ...


class AdapterClass(Protocol):
    """How adapters of one kind are made in one framework: what `variants.kinds.Kind.adapters` names.

    `model` is the framework's own; `config` is an instance of the kind's config class.
    """

    def create(self, model: Any, config: Any, encoder: PromptEncoder, pairs: Sequence[Pair]) -> Adapter:
        """A fresh adapter. The framework's global generator draws its initial numbers; `pairs` are what it will be
        trained on."""
        ...

    def load(self, model: Any, config: Any, encoder: PromptEncoder, folder: Path, **changes: str) -> Adapter:
        """The adapter that `Adapter.save` wrote, changed as `Kind.changes` allows.

        Raises:
            UsageError: the files are damaged or of another model.
        """
        ...


@dataclass(frozen=True)
class Written:
    """How a fact was written: wall time, steps taken, log-odds of its worst token (nats), and rows that it brought."""

    seconds: float
    steps: int
    log_odds: float
    rows: int


class Writable(Protocol):
    """A saved adapter that single facts can be written into, on the model it belongs to."""

    @property
    def adapter(self) -> Adapter:
        """For `Backend.attached`."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """What was written after training: values by key."""
        ...

    def write(self, key: str, value: str) -> Written:
        """Store one fact. Raises UsageError where the key is blank or known already."""
        ...

    def forget(self, key: str) -> None:
        """Take one written fact out. Raises UsageError where it was not written."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter's files into an existing folder."""
        ...


class Backend(Protocol):
    """One model loaded on one device, and the adapters that can be put on it.

    Attributes:
        name: "torch" or "mlx".
        device: where it runs.
        dtype: of the backbone; adapters are float32.
        dtype_reason: why this dtype, for the header line.
        batch_size: rows decoded together.
        encoder: the model's tokenizer and template.
        parameters: number of backbone parameters.
        lora_engine: the library that trains a LoRA.
        lora_engine_reason: why this one, for the header line.
    """

    name: str
    device: str
    dtype: str
    dtype_reason: str
    batch_size: int
    encoder: PromptEncoder
    parameters: int
    lora_engine: str
    lora_engine_reason: str

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that can change a result."""
        ...

    def peak_memory(self) -> int:
        """Most bytes held so far: by the framework where it counts them, else by the process."""
        ...

    def train(
        self,
        variant: Variant,
        examples: Sequence[Example],
        seed: int,
        folder: Path,
        progress: Progress,
        validation: Sequence[Example] = (),
    ) -> Training:
        """Train an adapter on the examples and save it to `folder`; the model is left as it was.

        `validation` takes no part in the training; its loss is measured at the end.
        """
        ...

    def load_adapter(self, variant: Variant, folder: Path) -> Adapter:
        """An adapter for `attached`. Raises UsageError where the files are damaged or of another model."""
        ...

    def load_writable(self, folder: Path) -> Writable:
        """An adapter that facts can be written into, of the shape its files say.

        Raises:
            UsageError: there is none in the folder, it is damaged or of another model, or this backend cannot write.
        """
        ...

    def attached(self, adapter: Adapter | None) -> AbstractContextManager[None]:
        """The model with the adapter on it while the context lasts; afterwards the exact baseline, bit for bit."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        seeds: Sequence[int | None] | None = None,
        temperature: float = 1.0,
        recurring: bool = False,
    ) -> list[list[int]]:
        """Answer token ids of each prompt, end-of-text excluded.

        Greedy where a prompt has no seed; where it has one its answer is drawn at `temperature` and depends on the
        seed, not on its neighbours in the batch. The same prompt may be asked many times.

        `recurring` says that other adapters will be asked the same: what is the same for them may be kept.
        """
        ...

    def stream(self, prompt: Prompt, max_new_tokens: int, *, ignore_eos: bool = False) -> Iterator[int]:
        """The greedy answer to one prompt, token by token as it is made; the adapter has to stay as it is till the end.

        With `ignore_eos` it goes on for `max_new_tokens`, whatever the model says: for measuring.
        """
        ...

    def log_probabilities(self, texts: Sequence[Text]) -> list[list[float]]:
        """Log-probability, in nats, of each answer token given its prompt and the answer so far."""
        ...

    def collateral(self, adapter: Adapter | None, texts: Sequence[Text]) -> Collateral:
        """Compare next-token distributions with and without the adapter over prompts and their given continuations."""
        ...


def windows(adapter: Adapter | None, prompt: Prompt, answer: Sequence[int], mark: int) -> NDArray[np.int64]:
    """The n-gram that each token of a prompt and its answer sees: int64 [tokens, N]; see `prompts.ngram_windows`."""
    span = adapter.span(prompt) if adapter else None
    on_text = adapter is not None and adapter.acts_on_text
    return ngram_windows(prompt, answer, ngram_size(adapter), span, mark, on_text=on_text)


def ngram_size(adapter: Adapter | None) -> int:
    """N, how many tokens the windows of an adapter hold; 1 with none attached."""
    return adapter.ngram_size if adapter else 1


def adapter_class(variant: Variant, framework: str) -> AdapterClass:
    """The class that creates and loads a variant's adapters in a framework.

    Raises:
        UsageError: the variant's kind has none there.
    """
    kind = KINDS[variant.kind]
    if framework not in kind.adapters:
        known = ", ".join(kind.adapters) or "none"
        raise UsageError(f"variant {variant.name}: kind {kind.name} has no adapter for {framework}; it has: {known}")
    module, _, name = kind.adapters[framework].partition(":")
    found: AdapterClass = getattr(import_module(module), name)
    return found
