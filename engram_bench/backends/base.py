"""The interface between the harness and a machine-learning framework: the protocols a backend implements."""

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
from engram_bench.prompts import Pair, Prompt, PromptEncoder, Span, blank_windows
from engram_bench.variants import Variant
from engram_bench.variants.kinds import KINDS

Text = tuple[Prompt, Sequence[int]]  # a prompt and the answer tokens that follow it
Progress = Callable[[str, int, int], None]  # (message, done, total)


@dataclass(frozen=True)
class Training:
    """Measurements of one training run.

    Attributes:
        seconds: wall time.
        examples: number of training examples.
        epochs: number of epochs, the last one perhaps in part.
        losses: mean loss per answer token in each epoch, in nats.
        validation_loss: the same loss after the last epoch, on trained items in phrasings that are neither trained nor
            tested; None if no validation examples were given.
        steps: number of optimizer steps.
        learned: share of the last examples whose every answer token was the most probable one.
        ended_early: whether training ended because the answers were learned, not because its steps were used up.
        replay: number of replay texts trained on, see `backends.replay`.
        replay_kl: KL(untouched || adapted) on them in nats, mean over the answer tokens of the last pass, each before
            the step on it; None without replay texts.
    """

    seconds: float
    examples: int
    epochs: int
    losses: tuple[float, ...]
    validation_loss: float | None = None
    steps: int = 0
    learned: float = 0.0
    ended_early: bool = False
    replay: int = 0
    replay_kl: float | None = None


@dataclass(frozen=True)
class Collateral:
    """How much an adapter changes the model's predictions where nothing was to be learned, over `tokens` tokens."""

    tokens: int
    kl_mean: float  # nats per token, KL(baseline || variant)
    kl_max: float
    top1_unchanged: float  # share of tokens whose most probable next token stays the same

    @classmethod
    def over(cls, kl: Sequence[NDArray[Any]], same: Sequence[NDArray[np.bool_]]) -> Collateral:
        """Summarize the per-token results of several batches.

        Args:
            kl: divergence of each token in nats, one array [tokens] per batch.
            same: whether each token's most probable next token stays the same, one array [tokens] per batch.

        Raises:
            UsageError: the adapter's outputs are not finite.
        """
        values = np.concatenate(kl).astype(np.float64)
        if not np.isfinite(values).all():
            raise UsageError("the adapter makes the model's outputs infinite or NaN; train it with a lower lr")
        # Rounding can make a divergence slightly negative.
        mean, most = max(0.0, float(values.mean())), max(0.0, float(values.max()))
        return cls(len(values), mean, most, float(np.concatenate(same).mean()))


class Adapter(Protocol):
    """A trained addition to a model, such as a LoRA or a memory: what all kinds and frameworks share.

    Each framework extends this protocol with what its own forward pass and training need.

    Attributes:
        ngram_size: N, the number of tokens in each n-gram window; 1 for adapters without n-grams.
        acts_on_template: whether it changes hidden states of the template tokens that all prompts share.
        acts_on_text: whether it changes hidden states of the user's text. If not, it acts only on the prompt's last
            token and the answer.
    """

    ngram_size: int
    acts_on_template: bool
    acts_on_text: bool

    def span(self, prompt: Prompt) -> Span | None:
        """The content tokens that the adapter reads; None if it reads none."""
        ...

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        """What each token of a prompt and its answer reads, int64 [tokens, N + 1]: `ABSENT` throughout if nothing.

        The window of a token that follows in the answer goes on from the last one, see `prompts.extend_windows`.
        """
        ...

    def found(self, prompt: Prompt) -> list[list[int]] | None:
        """N-grams whose table rows help predict the answer's first token: token ids, shortest n-gram first.

        Returns None for adapters without n-grams.
        """
        ...

    def gates(self) -> list[float]:
        """Gate values (0 to 1) at the last token of the last forward pass, one per layer; empty without gates."""
        ...

    def train(self, mode: bool) -> None:
        """Turn dropout on for training (True), or off."""
        ...

    def parameter_count(self) -> int:
        """Number of trainable parameters."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter's files into an existing folder."""
        ...


class WithoutNgrams:
    """Defaults of `Adapter` for adapters without n-grams, gates and dropout, which act on every token."""

    ngram_size = 1
    acts_on_template = acts_on_text = True

    def span(self, prompt: Prompt) -> Span | None:
        return None

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        return blank_windows(len(prompt.ids) + len(answer), self.ngram_size)

    def found(self, prompt: Prompt) -> list[list[int]] | None:
        return None

    def gates(self) -> list[float]:
        return []

    def train(self, mode: bool) -> None:
        pass


class AdapterClass(Protocol):
    """Creates and loads adapters of one kind in one framework; `variants.kinds.Kind.adapters` names these classes.

    `model` is the framework's model object; `config` is an instance of the kind's config class.
    """

    def create(self, model: Any, config: Any, encoder: PromptEncoder, pairs: Sequence[Pair]) -> Adapter:
        """Create an untrained adapter, to be trained on `pairs`.

        The framework's global random generator draws the initial parameters.
        """
        ...

    def load(self, model: Any, config: Any, encoder: PromptEncoder, folder: Path, **changes: str) -> Adapter:
        """Load an adapter that `Adapter.save` wrote, with the damage that `Kind.changes` allows.

        Raises:
            UsageError: the files are damaged or belong to another model.
        """
        ...


@dataclass(frozen=True)
class Written:
    """Result of writing a fact: wall time, optimizer steps, log-odds of its least certain token (nats), new rows."""

    seconds: float
    steps: int
    log_odds: float
    rows: int


class Writable(Protocol):
    """A loaded memory, on its model, that accepts single facts without retraining."""

    @property
    def adapter(self) -> Adapter:
        """The adapter to pass to `Backend.attached`."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """The facts written after training: values by key."""
        ...

    def write(self, key: str, value: str, name: str = "") -> Written:
        """Store one fact, to be heard at a name if the memory hears names. Raises UsageError if the key is blank or
        already known.
        """
        ...

    def forget(self, key: str) -> None:
        """Remove one written fact. Raises UsageError if the key was never written."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter's files into an existing folder."""
        ...


class Backend(Protocol):
    """One model on one device, and the adapters that can be attached to it.

    Attributes:
        name: "torch" or "mlx".
        device: the device that computes.
        dtype: data type of the backbone; adapters train in float32.
        dtype_reason: why this dtype was chosen, for the header line.
        batch_size: maximum number of answers decoded together.
        encoder: the model's tokenizer and template.
        stop_ids: tokens that end an answer, end-of-text among them.
        parameters: number of backbone parameters.
        depth: number of transformer layers.
        context: most tokens of a prompt and its answer; `sys.maxsize` if the model names no limit.
        lora_engine: the library that trains a LoRA.
        lora_engine_reason: why this library was chosen, for the header line.
    """

    name: str
    device: str
    dtype: str
    dtype_reason: str
    batch_size: int
    encoder: PromptEncoder
    stop_ids: set[int]
    parameters: int
    depth: int
    context: int
    lora_engine: str
    lora_engine_reason: str

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that can affect results."""
        ...

    def peak_memory(self) -> int:
        """Peak memory in bytes: as counted by the framework, or else of the whole process."""
        ...

    def matrix_rate(self) -> float:
        """Speed of products of square matrices in the backbone's dtype, in GFLOP/s, by which machines compare."""
        ...

    def train(
        self,
        variant: Variant,
        examples: Sequence[Example],
        seed: int,
        folder: Path,
        progress: Progress,
        validation: Sequence[Example] = (),
        replay: Sequence[str] = (),
    ) -> Training:
        """Train an adapter on the examples and save it to `folder`; the model itself stays unchanged.

        The `validation` examples are not trained on; only their loss is measured at the end. `replay` are users' texts
        whose answers training must leave as they are, see `backends.replay`.
        """
        ...

    def load_adapter(self, variant: Variant, folder: Path) -> Adapter:
        """Load an adapter. Raises UsageError if its files are damaged or belong to another model."""
        ...

    def load_writable(self, folder: Path) -> Writable:
        """Load an adapter that accepts written facts; the folder's config file gives its shape.

        Raises:
            UsageError: the folder has no such adapter, its files are damaged or belong to another model, or this
                backend cannot write facts.
        """
        ...

    def attached(self, adapter: Adapter | None) -> AbstractContextManager[None]:
        """Attach the adapter to the model inside the context; leaving it restores the baseline bit for bit."""
        ...

    def hidden_states(self, prompts: Sequence[Prompt], layer: int) -> NDArray[np.float32]:
        """The input of a layer at the last token of each prompt, [prompts, d].

        Layers from this one on do not run, so a memory attached there changes nothing.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | Sequence[int],
        *,
        seeds: Sequence[int | None] | None = None,
        temperature: float = 1.0,
        recurring: bool = False,
    ) -> list[list[int]]:
        """Return the answer token ids of each prompt, without end-of-text, up to a limit: of all, or one for each.

        A prompt without a seed gets the greedy answer. A prompt with a seed gets an answer sampled at `temperature`,
        which depends on the seed but not on the rest of the batch. The same prompt may occur several times.

        Set `recurring` if other adapters will answer the same prompts: the backend may then reuse their prefill.
        """
        ...

    def with_distributions(
        self, prompts: Sequence[Prompt], max_new_tokens: int
    ) -> list[tuple[list[int], NDArray[np.float16]]]:
        """The greedy answers, each with the log-probabilities from which its tokens were chosen, [tokens, vocabulary].

        An answer that ends before the limit has one more row, from which its end was chosen.
        """
        ...

    def stream(self, prompt: Prompt, max_new_tokens: int, *, ignore_eos: bool = False) -> Iterator[int]:
        """Yield the greedy answer to one prompt token by token; do not change the attached adapter meanwhile.

        With `ignore_eos`, yield exactly `max_new_tokens` tokens, which speed measurements need.
        """
        ...

    def log_probabilities(self, texts: Sequence[Text]) -> list[list[float]]:
        """Log-probability, in nats, of each answer token given its prompt and the previous answer tokens."""
        ...

    def collateral(self, adapter: Adapter | None, texts: Sequence[Text], *, answers_only: bool = False) -> Collateral:
        """Compare next-token distributions with and without the adapter over prompts and their given continuations.

        With `answers_only`, compare only the distributions that predict a token of the continuation.
        """
        ...


def trained_on(variant: Variant, examples: Sequence[Example], encoder: PromptEncoder) -> list[Pair]:
    """The encoded examples that can train a variant, see `Config.needs_key`."""
    key_only = variant.config is not None and variant.config.needs_key
    return [encoder.pair(example) for example in examples if example.key or not key_only]


def windows(adapter: Adapter | None, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
    """What each token of a prompt and its answer reads; see `Adapter.windows`."""
    return adapter.windows(prompt, answer) if adapter else blank_windows(len(prompt.ids) + len(answer), 1)


def ngram_size(adapter: Adapter | None) -> int:
    """N, the number of tokens in the adapter's n-gram windows; 1 without an adapter."""
    return adapter.ngram_size if adapter else 1


def adapter_class(variant: Variant, framework: str) -> AdapterClass:
    """Return the class that creates and loads a variant's adapters in a framework.

    Raises:
        UsageError: the variant's kind has no adapter class for this framework.
    """
    kind = KINDS[variant.kind]
    if framework not in kind.adapters:
        known = ", ".join(kind.adapters) or "none"
        raise UsageError(
            f"variant {variant.name}: kind {kind.name} has no adapter for {framework}; frameworks it supports: {known}"
        )
    module, _, name = kind.adapters[framework].partition(":")
    found: AdapterClass = getattr(import_module(module), name)
    return found
