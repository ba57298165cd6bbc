"""The MLX backend: one causal language model by mlx-lm, on Apple Silicon or on a Linux machine.

The batch layout is mlx-lm's own: the tokens all prompts share are computed once, each row's own tokens follow, padded
on the right; before decoding the cache is rolled so that all rows end together.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import get_total_parameters, load_model
from numpy.typing import NDArray
from transformers import AutoTokenizer

from engram_bench.backends import decoding
from engram_bench.backends.base import Divergence, Progress, Text, Training, ngram_size, windows
from engram_bench.backends.mlx import training as mlx_training
from engram_bench.backends.mlx.adapters import Adapter, create, load
from engram_bench.backends.mlx.decoding import Caches, Decoding
from engram_bench.backends.training import with_validation
from engram_bench.data.items import Example
from engram_bench.errors import UsageError
from engram_bench.memory.mlx import injected
from engram_bench.prompts import ABSENT, Prompt, PromptEncoder, shared_prefix
from engram_bench.variants import Variant

BATCH_SIZE = 64
SCORING_BATCH_SIZE = 8  # a row of [tokens, vocabulary] float32 is some 10 MB


@dataclass
class Rows:
    """The part of a batch after the shared prefix: [rows, tokens] arrays, right-padded; windows [rows, tokens, N]."""

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    windows: NDArray[np.int64]


def pick_device(_: str) -> str:
    """Where MLX computes on this machine."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def pick_dtype(device: str) -> tuple[mx.Dtype, str]:
    """The backbone's dtype on a device, and why."""
    if device == "cpu":
        return mx.float32, "on a CPU, a fast BLAS does float32 alone"
    return mx.bfloat16, "a GPU"


def pick_engine(wanted: str, _: str) -> tuple[str, str]:
    """What trains a LoRA, and why.

    Raises:
        UsageError: one of torch's engines is wanted.
    """
    if wanted != "auto":
        raise UsageError(
            f"--engram-lora-engine {wanted}: on MLX, mlx-lm trains a LoRA; leave it at auto, or take a torch backend"
        )
    return "mlx-lm", "on MLX"


class MlxModel:
    """A `Backend` (see base.py for the contract of its public methods).

    Args:
        folder: local model folder, safetensors.
        device: from `pick_device`.
        lora_engine: from `pick_engine`.

    Raises:
        UsageError: mlx-lm cannot read the folder.
    """

    name = "mlx"
    batch_size = BATCH_SIZE

    def __init__(self, folder: Path, device: str, lora_engine: tuple[str, str] = ("mlx-lm", "on MLX")) -> None:
        self.device = device
        self.lora_engine, self.lora_engine_reason = lora_engine
        dtype, self.dtype_reason = pick_dtype(device)
        self.dtype = str(dtype).removeprefix("mlx.core.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.model, config = load_model(folder, model_config=_rope_fields(folder))
            self.encoder = PromptEncoder(tokenizer)
        except Exception as error:  # mlx-lm raises OSError, ValueError, KeyError, RuntimeError, TypeError, ...
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UsageError(f"{folder}: mlx-lm cannot load this model: {reason}") from error
        self.model.set_dtype(dtype)
        self.model.freeze()
        self.parameters = get_total_parameters(self.model)
        self.stop_ids = decoding.stop_ids(self.encoder.eos_id, config.get("eos_token_id"))
        self._adapter: Adapter | None = None

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm", "transformers", "numpy")}

    def peak_memory(self) -> int:
        return int(mx.get_peak_memory())

    def train(
        self,
        variant: Variant,
        examples: Sequence[Example],
        seed: int,
        folder: Path,
        progress: Progress,
        validation: Sequence[Example] = (),
    ) -> Training:
        assert variant.training is not None, f"{variant.name} has nothing to train"
        pairs = [self.encoder.pair(example) for example in examples]
        mx.random.seed(seed)
        adapter = create(self.model, variant, self.encoder, pairs)
        with self.attached(adapter):
            training = mlx_training.train(self, adapter, variant.training, pairs, seed, progress)
            adapter.save(folder)
            return with_validation(training, self, validation)

    def load_adapter(self, variant: Variant, folder: Path) -> Adapter:
        return load(self.model, variant, self.encoder, folder)

    def trainable_parameters(self, adapter: Adapter) -> int:
        return adapter.parameters()

    @contextmanager
    def attached(self, adapter: Adapter | None) -> Iterator[None]:
        assert self._adapter is None, "an adapter is on already; adapters do not stack"
        self._adapter = adapter
        try:
            with adapter.on(self.model) if adapter else nullcontext():
                yield
        finally:
            self._adapter = None

    # --- the one batch layout -------------------------------------------------------------------------------------

    def rows(self, pairs: Sequence[Text], prefix: int) -> Rows:
        """Lay out prompts and the answer tokens that follow them, less the first `prefix` tokens."""
        lengths = np.array([len(p.ids) + len(answer) - prefix for p, answer in pairs])
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        ids = np.full(mask.shape, self.encoder.eos_id, dtype=np.int64)
        seen = np.full((*mask.shape, ngram_size(self._adapter)), ABSENT, dtype=np.int64)
        for row, ((prompt, answer), length) in enumerate(zip(pairs, lengths, strict=True)):
            ids[row, :length] = (*prompt.ids[prefix:], *answer)
            seen[row, :length] = windows(self._adapter, prompt, answer, self.encoder.eos_id)[prefix:]
        return Rows(ids, mask, seen)

    def shared(self, prompts: Sequence[Prompt], longest: int) -> int:
        """See `decoding.Model.shared`; mlx-lm's caches know each token's own position, so any length will do."""
        return shared_prefix(prompts)

    def prefix_state(self, prompt: Prompt, prefix: int) -> Caches:
        """Caches, batch 1, of the first `prefix` tokens, with whatever adapter is attached."""
        caches: Caches = make_prompt_cache(self.model)
        if prefix:
            ids = np.array([prompt.ids[:prefix]])
            self._look_up(ids, np.full((1, prefix, ngram_size(self._adapter)), ABSENT))
            self.model(mx.array(ids), cache=caches)
        return caches

    def forward(self, state: Caches, rows: Rows, at: NDArray[np.bool_]) -> tuple[mx.array, Caches]:
        """Logits [wanted, vocabulary] where `at`, [rows, tokens], says so, row by row; and caches of all tokens."""
        caches = [cache.merge([cache]) for cache in state]
        lengths = rows.mask.sum(axis=1)
        for cache in caches:
            cache.filter(mx.zeros(len(lengths), dtype=mx.int32))  # the one row there is, once for each of the batch
            cache.prepare(lengths=lengths.tolist(), right_padding=(rows.mask.shape[1] - lengths).tolist())
        return self.step(rows.ids, rows.windows, caches, at), caches

    def answer_logits(self, pairs: Sequence[Text], state: Caches, prefix: int) -> tuple[mx.array, mx.array]:
        """Logits [answer tokens, vocabulary] for the tokens of all answers, row by row, and those tokens' ids."""
        rows = self.rows([(prompt, answer[:-1]) for prompt, answer in pairs], prefix)
        # A token is predicted at the one before it: the first at the last of the prompt.
        first = np.array([[len(p.ids) - 1 - prefix] for p, _ in pairs])
        place = np.arange(rows.ids.shape[1])[None] - first
        logits, _ = self.forward(state, rows, (place >= 0) & (place < [[len(answer)] for _, answer in pairs]))
        return logits, mx.array([token for _, answer in pairs for token in answer], dtype=mx.int32)

    def step(
        self, ids: NDArray[np.int64], windows: NDArray[np.int64], caches: Caches, at: NDArray[np.bool_]
    ) -> mx.array:
        """Logits [wanted, vocabulary] of tokens [rows, tokens] that follow those in the caches, and join them."""
        self._look_up(ids, windows)
        where = tuple(map(mx.array, np.nonzero(at)))
        # Cut out after the last layer: what follows works token by token, and the vocabulary matrix is large.
        with injected(self.model, {len(self.model.layers) - 1: lambda hidden: hidden[where][None]}, after=True):
            logits: mx.array = self.model(mx.array(ids), cache=caches)[0]
        return logits

    def _look_up(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        for memory in self._adapter.memories() if self._adapter else ():
            memory.look_up(ids, windows)

    # --- decoding -------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        seeds: Sequence[int | None] | None = None,
        temperature: float = 1.0,
        recurring: bool = False,
    ) -> list[list[int]]:
        return decoding.generate(self, prompts, max_new_tokens, seeds, temperature)

    def stream(self, prompt: Prompt, max_new_tokens: int, *, ignore_eos: bool = False) -> Iterator[int]:
        yield from decoding.stream(self, prompt, max_new_tokens, ignore_eos)

    def begin(
        self, prompts: Sequence[Prompt], most_rows: int, state: Caches, prefix: int, max_new_tokens: int
    ) -> Decoding:
        rows = self.rows([(prompt, ()) for prompt in prompts], prefix)
        last = rows.mask.sum(axis=1) - 1
        at = np.arange(rows.mask.shape[1])[None] == last[:, None]
        logits, caches = self.forward(state, rows, at)
        for cache in caches:
            cache.finalize()
        return Decoding(self.step, logits, caches, rows.windows[at])

    # --- scoring --------------------------------------------------------------------------------------------------

    def log_probabilities(self, texts: Sequence[Text]) -> list[list[float]]:
        found: list[list[float]] = []
        for start in range(0, len(texts), SCORING_BATCH_SIZE):
            batch = texts[start : start + SCORING_BATCH_SIZE]
            prefix = shared_prefix([prompt for prompt, _ in batch])
            logits, tokens = self.answer_logits(batch, self.prefix_state(batch[0][0], prefix), prefix)
            logs = (-nn.losses.cross_entropy(logits.astype(mx.float32), tokens)).tolist()
            ends = np.cumsum([len(answer) for _, answer in batch]).tolist()
            found += [logs[first:last] for first, last in zip([0, *ends], ends, strict=False)]
        return found

    def divergence(self, adapter: Adapter | None, texts: Sequence[Text]) -> Divergence:
        kl: list[NDArray[np.float64]] = []
        same: list[NDArray[np.bool_]] = []
        # Batch by batch with and without the adapter: distributions over the vocabulary are too large to keep.
        for start in range(0, len(texts), SCORING_BATCH_SIZE):
            batch = texts[start : start + SCORING_BATCH_SIZE]
            with self.attached(None):
                base = self._score(batch)
            with self.attached(adapter):
                variant = self._score(batch)
            kl.append(np.array((mx.exp(base) * (base - variant)).sum(-1), dtype=np.float64))
            same.append(np.array(base.argmax(-1) == variant.argmax(-1)))
        return Divergence.over(kl, same)

    def _score(self, batch: Sequence[Text]) -> mx.array:
        """Log-probabilities [tokens, vocabulary], float32, of all rows one after another."""
        prefix = shared_prefix([prompt for prompt, _ in batch])
        rows = self.rows(batch, prefix)
        logits, _ = self.forward(self.prefix_state(batch[0][0], prefix), rows, rows.mask)
        logits = logits.astype(mx.float32)
        logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        mx.eval(logs)
        return logs


def _rope_fields(folder: Path) -> dict[str, Any]:
    """What transformers 5 writes as `rope_parameters`, by the names most models of mlx-lm read.

    Without it they take their default base frequency and answer, slightly wrong.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    fields: dict[str, Any] = {}
    if any(isinstance(own, dict) for own in rope.values()):  # by kind of layer
        near = rope.get("sliding_attention", {})
        if not str(config.get("model_type")).startswith("gemma3") or near.get("rope_type") != "default":
            raise ValueError(f"rotary positions that differ between {' and '.join(rope)}")
        fields, rope = {"rope_local_base_freq": near["rope_theta"]}, rope["full_attention"]
    fields |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = rope
    return {name: value for name, value in fields.items() if name not in config}
