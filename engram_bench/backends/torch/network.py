"""The loaded model and its forward passes, with whatever adapter is attached.

Every batch has one layout, in training as in decoding: the tokens all prompts share (most of a chat template) stand
first and are computed once, then each row's own tokens follow, padded on the left so that answers end together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache

from engram_bench.backends.base import Adapter, Text, ngram_size, windows
from engram_bench.backends.torch import attention
from engram_bench.backends.torch.adapters import TorchAdapter
from engram_bench.backends.torch.cache import OwnLayer
from engram_bench.backends.torch.device import make_repeatable, pick_dtype, uploaded
from engram_bench.backends.torch.layout import NOWHERE, Rows, answer_places, padded
from engram_bench.errors import UsageError
from engram_bench.prompts import ABSENT, Prompt, PromptEncoder, shared_prefix

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers, where a model names them

Prefix = list[tuple[Tensor, Tensor]]  # keys and values of the shared tokens, [1, heads, tokens, head size] a layer


class Network:
    """A causal language model on one device, the adapter that is attached, and the forward pass of both.

    Args:
        folder: local model folder, safetensors.
        device: "cpu", "cuda" or "mps".

    Raises:
        UsageError: transformers cannot read the folder, or a layer of the model is not attention.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.device = device
        make_repeatable(device)
        dtype, self.dtype_reason = pick_dtype(device)
        self.dtype = str(dtype).removeprefix("torch.")
        model, self.encoder = _load(folder, dtype)
        self._config = model.config.get_text_config()  # of a model that sees images too, the part that reads
        if odd := set(getattr(self._config, "layer_types", None) or ()) - ATTENTION:
            raise UsageError(f"{folder}: layers of {', '.join(sorted(odd))} are not supported")
        ours = model._supports_attention_backend
        capped = getattr(self._config, "attn_logit_softcapping", None)
        self.holds_shared_apart = device == "cpu" and ours and not capped
        if self.holds_shared_apart:
            model.set_attn_implementation(attention.GROUPED)
        elif ours and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(attention.MASKED)
        self.model = model.to(device).eval().requires_grad_(False)
        self._wanted: Tensor | None = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._before_head)
        self._adapter: TorchAdapter | None = None

    @contextmanager
    def attached(self, adapter: Adapter | None) -> Iterator[None]:
        """See `Backend.attached`."""
        assert self._adapter is None, "an adapter is on already; adapters do not stack"
        own = self._adapter = cast(TorchAdapter | None, adapter)
        try:
            with own.on(self.model) if own else nullcontext():
                yield
        finally:
            self._adapter = None

    def rows(self, pairs: Sequence[Text], prefix: int) -> Rows:
        """Lay out prompts and the answer tokens that follow them, less the first `prefix` tokens."""
        seen = [self.windows(*pair)[prefix:] for pair in pairs]
        return padded([(*prompt.ids[prefix:], *answer) for prompt, answer in pairs], seen, self.encoder.eos_id)

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        """See `base.windows`, with the adapter that is attached."""
        return windows(self._adapter, prompt, answer, self.encoder.eos_id)

    @property
    def _window(self) -> int:
        """How many tokens back the layer sees that sees the least."""
        named = (getattr(self._config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return min((tokens for tokens in named if tokens), default=sys.maxsize)

    def shared(self, prompts: Sequence[Prompt], longest: int) -> int:
        """See `decoding.Model.shared`. None where a text goes beyond an attention window: it is counted in places, so
        that tokens held apart, or with padding behind them, would be taken for nearer or farther than they are."""
        return shared_prefix(prompts) if longest <= self._window else 0

    def shared_by(self, texts: Sequence[Text]) -> int:
        """`shared`, of prompts and the answers that follow them."""
        longest = max(len(prompt.ids) + len(answer) for prompt, answer in texts)
        return self.shared([prompt for prompt, _ in texts], longest)

    def prefix_state(self, prompt: Prompt, prefix: int) -> Prefix:
        """Keys and values of the first `prefix` tokens, with whatever adapter is attached."""
        if prefix == 0:
            return []
        ids = np.array([prompt.ids[:prefix]])
        (input_ids,) = self._uploaded(ids, np.full((1, prefix, ngram_size(self._adapter)), ABSENT))
        cache = DynamicCache()
        self._logits(NOWHERE, input_ids=input_ids, past_key_values=cache, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def forward(
        self, state: Prefix, rows: Rows, keep: int, places: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, Cache]:
        """Logits of the last `keep` positions (0: all) or of `places` among them, as `step` gives them, and the cache
        of all tokens."""
        prefix = state[0][0].shape[-2] if state else 0
        mask = np.concatenate([np.ones((len(rows.ids), prefix), dtype=np.int64), rows.mask], axis=1)
        positions = (mask.cumsum(axis=1) - 1).clip(min=0)[:, prefix:]
        cache = self.cache(state, len(rows.ids))
        return self.step(rows.ids, mask, positions, rows.windows, cache, keep, places), cache

    def cache(self, state: Prefix, rows: int) -> Cache:
        """A cache that begins with the shared tokens."""
        if state and self.holds_shared_apart:
            return Cache(layers=[OwnLayer(shared) for shared in state])
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(state):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def takes_any_layout(self, longest: int) -> bool:
        """Whether tokens of texts this long may stand anywhere in a row, and a mask tells them apart.

        Positions have to be given, by rotation, and no layer may have a mask of its own.
        """
        return hasattr(self._config, "rope_parameters") and longest <= self._window

    def answer_logits(self, pairs: Sequence[Text], state: Prefix, prefix: int) -> tuple[Tensor, Tensor]:
        """Logits [answer tokens, vocabulary] for the tokens of all answers, row by row, and those tokens' ids."""
        places, tokens = answer_places(pairs)
        rows = self.rows([(prompt, answer[:-1]) for prompt, answer in pairs], prefix)
        logits, _ = self.forward(state, rows, places.shape[1], places)
        return logits, torch.from_numpy(tokens).to(self.device)

    def _before_head(self, _: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Hidden states for the vocabulary matrix: rows of one matrix where only some are wanted.

        A slice of positions is not contiguous, and a product with it copies the vocabulary matrix once a row.
        """
        hidden, wanted = args[0], self._wanted
        return (hidden.contiguous() if wanted is None else hidden[wanted.expand(hidden.shape[:2])],)

    def step(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
        windows: NDArray[np.int64],
        cache: Cache,
        keep: int,
        places: NDArray[np.bool_] | None = None,
    ) -> Tensor:
        """Logits of new tokens: [rows, keep, vocabulary], or [places, vocabulary], row by row, where `places` is given.

        Args:
            ids, positions: [rows, tokens].
            mask: which tokens there are, [rows, all tokens], or which each new one sees, [rows, tokens, all tokens].
            windows: [rows, tokens, N].
            cache: of the tokens before; takes the new ones.
            keep: how many of the last positions; 0: all.
            places: which of those alone, [rows, keep]; `NOWHERE`, where only the cache is wanted.
        """
        input_ids, attention_mask, position_ids = self._uploaded(ids, windows, mask, positions)
        if mask.ndim == 3:
            least = torch.finfo(self.model.dtype).min
            attention_mask = ((1 - attention_mask[:, None]) * least).to(self.model.dtype)
        return self._logits(
            places,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            logits_to_keep=keep,
        )

    def _logits(self, places: NDArray[np.bool_] | None, **inputs: Any) -> Tensor:
        """One forward of the model; `_before_head` heeds the places."""
        self._wanted = None if places is None else torch.from_numpy(places).to(self.device)
        try:
            logits: Tensor = self.model(**inputs, use_cache=True).logits
        finally:
            self._wanted = None
        return logits

    def _uploaded(
        self, ids: NDArray[np.int64], windows: NDArray[np.int64], *more: NDArray[np.int64]
    ) -> Sequence[Tensor]:
        """`ids` and `more` on the device, and with them what the attached memories will add to the next forward."""
        memories = self._adapter.memories() if self._adapter else ()
        found = [memory.slots_for(ids, windows) for memory in memories]
        tensors = uploaded(self.device, [ids, *more, *found])
        for memory, slots in zip(memories, tensors[1 + len(more) :], strict=True):
            memory.set_slots(slots)
        return tensors[: 1 + len(more)]


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, PromptEncoder]:
    """The model and its tokenizer, read from safetensors alone; no code of the folder is run."""
    options = {"dtype": dtype, "local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    transformers.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
        encoder = PromptEncoder(tokenizer)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError, ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{folder}: transformers cannot load this model: {reason}") from error
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(f"{folder}: the weights lack {missing[0]} and {len(missing) - 1} more; fetch them whole")
    return model, encoder
