"""The loaded model and its forward passes, with the attached adapter.

The batch layout is mlx-lm's: the tokens that all prompts share are computed once, then each row's own tokens follow,
right-padded. Before decoding, the cache is rolled so that all rows end together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from numpy.typing import NDArray
from transformers import AutoTokenizer

from engram_bench.backends.base import Adapter, Text, ngram_size, windows
from engram_bench.backends.mlx.adapters import MlxAdapter
from engram_bench.backends.mlx.decoding import Caches, Recent
from engram_bench.backends.routed import Reached
from engram_bench.errors import UsageError
from engram_bench.memory.mlx import injected
from engram_bench.prompts import Prompt, PromptEncoder, blank_windows, shared_prefix

READ_TOGETHER = 32  # prompts in a forward of `hidden_states`


@dataclass
class Rows:
    """The part of a batch after the shared prefix: right-padded [rows, tokens]; windows [rows, tokens, N + 1]."""

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    windows: NDArray[np.int64]


def pick_device(_: str) -> str:
    """Return the device that MLX computes on."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def pick_dtype(device: str) -> tuple[mx.Dtype, str]:
    """Return the backbone's dtype for a device, and the reason."""
    if device == "cpu":
        return mx.float32, "on a CPU, fast matrix products exist only for float32"
    return mx.bfloat16, "on a GPU"


class Network:
    """A causal language model, and its forward passes with the attached adapter.

    Args:
        folder: local model folder, safetensors.
        device: from `pick_device`.

    Raises:
        UsageError: mlx-lm cannot load the folder.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.device = device
        dtype, self.dtype_reason = pick_dtype(device)
        self.dtype = str(dtype).removeprefix("mlx.core.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.model, self.config = load_model(folder, model_config=_rope_fields(folder))
            self.encoder = PromptEncoder(tokenizer)
        except Exception as error:  # mlx-lm raises OSError, ValueError, KeyError, RuntimeError, TypeError, ...
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UsageError(f"{folder}: mlx-lm cannot load this model: {reason}") from error
        self.model.set_dtype(dtype)
        self.model.freeze()
        self._adapter: MlxAdapter | None = None
        self._hidden_size = int(self.model.args.hidden_size)

    @contextmanager
    def attached(self, adapter: Adapter | None) -> Iterator[None]:
        """See `Backend.attached`."""
        assert self._adapter is None, "an adapter is on already; adapters do not stack"
        own = self._adapter = cast(MlxAdapter | None, adapter)
        try:
            with own.on(self.model) if own else nullcontext():
                yield
        finally:
            self._adapter = None

    def hidden_states(self, prompts: Sequence[Prompt], layer: int) -> NDArray[np.float32]:
        """See `Backend.hidden_states`. Padding follows a prompt, so its last token does not see it."""
        found = []

        def reached(hidden: mx.array) -> mx.array:
            raise Reached(hidden)

        for start in range(0, len(prompts), READ_TOGETHER):
            lengths = [len(prompt.ids) for prompt in prompts[start : start + READ_TOGETHER]]
            ids = np.full((len(lengths), max(lengths)), self.encoder.eos_id, dtype=np.int64)
            for row, prompt in zip(ids, prompts[start:], strict=False):
                row[: len(prompt.ids)] = prompt.ids
            try:
                with injected(self.model, {layer: reached}):
                    self.model(mx.array(ids))
            except Reached as end:
                last = mx.array(lengths) - 1
                found.append(np.array(end.args[0][mx.arange(len(lengths)), last].astype(mx.float32)))
        return np.concatenate(found)

    def rows(self, pairs: Sequence[Text], prefix: int) -> Rows:
        """Lay out prompts and their answers as padded rows, without the first `prefix` tokens."""
        lengths = np.array([len(p.ids) + len(answer) - prefix for p, answer in pairs])
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        ids = np.full(mask.shape, self.encoder.eos_id, dtype=np.int64)
        seen = np.stack([blank_windows(mask.shape[1], ngram_size(self._adapter))] * len(mask))
        for row, ((prompt, answer), length) in enumerate(zip(pairs, lengths, strict=True)):
            ids[row, :length] = (*prompt.ids[prefix:], *answer)
            seen[row, :length] = windows(self._adapter, prompt, answer)[prefix:]
        return Rows(ids, mask, seen)

    def shared(self, prompts: Sequence[Prompt], longest: int) -> int:
        """See `decoding.Model.shared`. Any length works, because mlx-lm's caches store each token's own position."""
        return shared_prefix(prompts)

    def prefix_state(self, prompt: Prompt, prefix: int) -> Caches:
        """Caches (batch size 1) of the first `prefix` tokens, computed with the attached adapter."""
        caches: Caches = make_prompt_cache(self.model)
        memories = self._adapter.memories() if self._adapter else ()
        if memories and memories[0].taps:
            caches.append(Recent(mx.zeros((1, len(memories), memories[0].taps[0], self._hidden_size))))
        if prefix:
            ids, seen = np.array([prompt.ids[:prefix]]), windows(self._adapter, prompt, ())
            self._run(ids, seen[None, :prefix], caches)
        return caches

    def forward(self, state: Caches, rows: Rows, at: NDArray[np.bool_]) -> tuple[mx.array, Caches]:
        """Run rows after the shared prefix; returns logits as `step` does, and the caches of all tokens."""
        caches = [cache.merge([cache]) for cache in state]
        lengths = rows.mask.sum(axis=1)
        for cache in caches:
            cache.filter(mx.zeros(len(lengths), dtype=mx.int32))  # repeats the single row
            cache.prepare(lengths=lengths.tolist(), right_padding=(rows.mask.shape[1] - lengths).tolist())
        return self.step(rows.ids, rows.windows, caches, at), caches

    def answer_logits(self, pairs: Sequence[Text], state: Caches, prefix: int) -> tuple[mx.array, mx.array]:
        """Logits that predict all answer tokens, row by row: [answer tokens, vocabulary]; and these tokens' ids."""
        rows = self.rows([(prompt, answer[:-1]) for prompt, answer in pairs], prefix)
        # The token before an answer token predicts it, so the prompt's last token predicts the first one.
        first = np.array([[len(p.ids) - 1 - prefix] for p, _ in pairs])
        place = np.arange(rows.ids.shape[1])[None] - first
        logits, _ = self.forward(state, rows, (place >= 0) & (place < [[len(answer)] for _, answer in pairs]))
        return logits, mx.array([token for _, answer in pairs for token in answer], dtype=mx.int32)

    def step(
        self, ids: NDArray[np.int64], windows: NDArray[np.int64], caches: Caches, at: NDArray[np.bool_]
    ) -> mx.array:
        """Run new tokens and add them to the caches.

        Args:
            ids: [rows, tokens].
            windows: [rows, tokens, N + 1].
            caches: of the previous tokens.
            at: the positions to return logits for, [rows, tokens].

        Returns:
            Logits [selected positions, vocabulary], row by row.
        """
        where = tuple(map(mx.array, np.nonzero(at)))
        # Select positions after the last layer: the head works token by token, and its vocabulary matrix is large.
        with injected(self.model, {len(self.model.layers) - 1: lambda hidden: hidden[where][None]}, after=True):
            logits: mx.array = self._run(ids, windows, caches)[0]
        return logits

    def _run(self, ids: NDArray[np.int64], windows: NDArray[np.int64], caches: Caches) -> mx.array:
        """One forward pass of the model; see `step`."""
        memories = self._adapter.memories() if self._adapter else ()
        recent = caches[-1] if isinstance(caches[-1], Recent) else None
        for n, memory in enumerate(memories):
            memory.set_slots(memory.slots_for(ids, windows), None if recent is None else recent.values[:, n])
        output: mx.array = self.model(mx.array(ids), cache=caches if recent is None else caches[:-1])
        if recent is not None:
            blank = mx.zeros((*ids.shape, self._hidden_size))
            values = [blank if memory.values is None else memory.values for memory in memories]
            recent.update(mx.stack(values, axis=1))
        return output


def _rope_fields(folder: Path) -> dict[str, Any]:
    """Translate transformers 5's `rope_parameters` to the field names that most mlx-lm models read.

    Without these fields, a model uses its default base frequency and gives slightly wrong answers.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    fields: dict[str, Any] = {}
    if any(isinstance(own, dict) for own in rope.values()):  # one entry per layer type
        near = rope.get("sliding_attention", {})
        if not str(config.get("model_type")).startswith("gemma3") or near.get("rope_type") != "default":
            raise ValueError(f"rotary positions that differ between {' and '.join(rope)} are not supported")
        fields, rope = {"rope_local_base_freq": near["rope_theta"]}, rope["full_attention"]
    fields |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = rope
    return {name: value for name, value in fields.items() if name not in config}
