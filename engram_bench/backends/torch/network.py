"""The loaded model and its forward passes, with the attached adapter.

Training and decoding use the same batch layout. The tokens that all prompts share (most of a chat template) come first
and are computed once. Then each row's own tokens follow, left-padded so that all answers end together.
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

from engram_bench.backends.base import Adapter, Text, windows
from engram_bench.backends.decoding import stop_ids
from engram_bench.backends.routed import Reached
from engram_bench.backends.torch import attention, earlier
from engram_bench.backends.torch.adapters import TorchAdapter
from engram_bench.backends.torch.cache import OwnLayer
from engram_bench.backends.torch.device import make_repeatable, pick_dtype, uploaded
from engram_bench.backends.torch.layout import NOWHERE, Rows, answer_places, padded
from engram_bench.errors import UsageError
from engram_bench.memory.torch import Earlier, decoder_layers
from engram_bench.prompts import Prompt, PromptEncoder, shared_prefix

READ_TOGETHER = 32  # prompts in a forward of `hidden_states`
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # supported layer types, if a model lists them

Prefix = list[tuple[Tensor, Tensor]]  # per layer: keys and values of the shared tokens, [1, heads, tokens, head size]


class Network:
    """A causal language model on one device, and its forward passes with the attached adapter.

    Args:
        folder: local model folder, safetensors.
        device: "cpu", "cuda" or "mps".

    Raises:
        UsageError: transformers cannot load the folder, or the model has layers other than attention.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.device = device
        make_repeatable(device)
        dtype, self.dtype_reason = pick_dtype(device)
        self.dtype = str(dtype).removeprefix("torch.")
        model, self.encoder = _load(folder, dtype)
        self._config = model.config.get_text_config()  # the text part of a multimodal model
        if odd := set(getattr(self._config, "layer_types", None) or ()) - ATTENTION:
            named = ", ".join(sorted(odd))
            raise UsageError(f"{folder}: layers of {named} are not supported; use a model with attention layers only")
        ours = model._supports_attention_backend
        capped = getattr(self._config, "attn_logit_softcapping", None)
        sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())  # they take part in the softmax
        plain = ours and not capped and not sinks
        self.holds_shared_apart = plain and device == "cpu"
        if plain:
            model.set_attn_implementation(attention.GROUPED)
        self.model = model.to(device).eval().requires_grad_(False)
        self.stop_ids = stop_ids(self.encoder.eos_id, self.model.generation_config.eos_token_id)
        self._wanted: Tensor | None = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._before_head)
        self._adapter: TorchAdapter | None = None
        self.depth = len(decoder_layers(self.model))
        self._blank = torch.zeros(self._config.hidden_size, device=device)

    @torch.inference_mode()
    def hidden_states(self, prompts: Sequence[Prompt], layer: int) -> NDArray[np.float32]:
        """See `Backend.hidden_states`. Padding follows a prompt, so its last token does not see it."""
        lengths = np.array([len(prompt.ids) for prompt in prompts])
        prefix = self.shared(prompts, int(lengths.max())) if len(prompts) > 1 and layer else 0
        shared = DynamicCache()
        if prefix:
            self._input_of(layer, np.array([prompts[0].ids[:prefix]]), shared)
        state = [(kept.keys, kept.values) for kept in shared.layers]
        found = np.empty((len(prompts), self._config.hidden_size), np.float32)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), READ_TOGETHER):
            some = order[start : start + READ_TOGETHER]
            own = lengths[some] - prefix
            ids = np.full((len(some), own.max()), self.encoder.eos_id, dtype=np.int64)
            for row, i in zip(ids, some.tolist(), strict=True):
                row[: lengths[i] - prefix] = prompts[i].ids[prefix:]
            hidden = self._input_of(layer, ids, self.cache(state, len(some)))
            rows = torch.arange(len(some), device=self.device)
            found[some] = hidden[rows, torch.from_numpy(own - 1).to(self.device)].float().cpu().numpy()
        return found

    def _input_of(self, layer: int, ids: NDArray[np.int64], cache: Cache) -> Tensor:
        """The input of a layer at new tokens, [rows, tokens, d]; this layer and those above do not run."""

        def reached(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise Reached(args[0] if args else kwargs["hidden_states"])

        hook = decoder_layers(self.model)[layer].register_forward_pre_hook(reached, with_kwargs=True, prepend=True)
        try:
            self.model(input_ids=torch.from_numpy(ids).to(self.device), past_key_values=cache)
        except Reached as end:
            hidden: Tensor = end.args[0]
            return hidden
        finally:
            hook.remove()
        raise AssertionError(f"layer {layer} did not run")

    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token, over all layers."""
        heads = getattr(self._config, "num_key_value_heads", None) or self._config.num_attention_heads
        size = getattr(self._config, "head_dim", None) or self._config.hidden_size // self._config.num_attention_heads
        return int(self.depth * 2 * heads * size * self.model.dtype.itemsize)

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
        """Lay out prompts and their answers as padded rows, without the first `prefix` tokens."""
        seen = [self.windows(*pair)[prefix:] for pair in pairs]
        return padded([(*prompt.ids[prefix:], *answer) for prompt, answer in pairs], seen, self.encoder.eos_id)

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        """See `base.windows`; uses the attached adapter."""
        return windows(self._adapter, prompt, answer)

    @property
    def _window(self) -> int:
        """The smallest attention window of any layer, in tokens."""
        named = (getattr(self._config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return min((tokens for tokens in named if tokens), default=sys.maxsize)

    def shared(self, prompts: Sequence[Prompt], longest: int) -> int:
        """See `decoding.Model.shared`. Returns 0 if a text is longer than an attention window.

        Windows count row positions. Padding, or a prefix held apart, would change the distances between tokens.
        """
        return shared_prefix(prompts) if longest <= self._window else 0

    def shared_by(self, texts: Sequence[Text]) -> int:
        """`shared` for prompts together with their answers."""
        longest = max(len(prompt.ids) + len(answer) for prompt, answer in texts)
        return self.shared([prompt for prompt, _ in texts], longest)

    def prefix_state(self, prompt: Prompt, prefix: int) -> Prefix:
        """Keys and values of the first `prefix` tokens, computed with the attached adapter."""
        if prefix == 0:
            return []
        ids, positions, seen = np.array([prompt.ids[:prefix]]), np.arange(prefix)[None], self.windows(prompt, ())
        cache = DynamicCache()
        self.step(ids, np.ones_like(ids), positions, seen[None, :prefix], cache, keep=1, places=NOWHERE)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def forward(
        self, state: Prefix, rows: Rows, keep: int, places: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, Cache]:
        """Run rows after the shared prefix; returns logits as `step` does, and the cache of all tokens."""
        prefix = state[0][0].shape[-2] if state else 0
        mask = np.concatenate([np.ones((len(rows.ids), prefix), dtype=np.int64), rows.mask], axis=1)
        positions = (mask.cumsum(axis=1) - 1).clip(min=0)[:, prefix:]
        cache = self.cache(state, len(rows.ids))
        return self.step(rows.ids, mask, positions, rows.windows, cache, keep, places), cache

    def cache(self, state: Prefix, rows: int) -> Cache:
        """Create a cache for `rows` rows that begins with the shared tokens."""
        if state and self.holds_shared_apart:
            return Cache(layers=[OwnLayer(shared) for shared in state])
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(state):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def takes_any_layout(self, longest: int) -> bool:
        """Whether tokens of texts this long may stand anywhere in a row, separated only by a mask.

        This needs rotary positions, which each call can set, and no attention window shorter than the texts.
        """
        return hasattr(self._config, "rope_parameters") and longest <= self._window

    def answer_logits(self, pairs: Sequence[Text], state: Prefix, prefix: int) -> tuple[Tensor, Tensor]:
        """Logits that predict all answer tokens, row by row: [answer tokens, vocabulary]; and these tokens' ids."""
        places, tokens = answer_places(pairs)
        rows = self.rows([(prompt, answer[:-1]) for prompt, answer in pairs], prefix)
        logits, _ = self.forward(state, rows, places.shape[1], places)
        return logits, torch.from_numpy(tokens).to(self.device)

    def _before_head(self, _: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Pass only the wanted hidden states to the vocabulary matrix, as rows of one contiguous matrix.

        A product with a non-contiguous slice would copy the vocabulary matrix once per row.
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
        """Run new tokens; returns logits [rows, keep, vocabulary], or with `places` [places, vocabulary], row by row.

        Args:
            ids, positions: [rows, tokens].
            mask: which positions hold tokens, [rows, all tokens], or which tokens each new one sees, [rows, tokens, all
                tokens].
            windows: [rows, tokens, N + 1].
            cache: of the previous tokens; the new ones are added.
            keep: number of last positions to return logits for; 0: all.
            places: selects some of these positions, [rows, keep]; `NOWHERE` if only the cache is wanted.
        """
        memories = self._adapter.memories() if self._adapter else ()
        found = [memory.slots_for(ids, windows) for memory in memories]
        convolves, where, values = bool(earlier.taps_of(memories)), np.empty(0, np.int64), list[Tensor]()
        if convolves:
            where, values = earlier.before(cache, self.depth, memories, mask, ids.shape[1], self._blank)
        uploads = uploaded(self.device, [ids, mask, positions, where, *found])
        input_ids, attention_mask, position_ids, at = uploads[:4]
        for n, memory in enumerate(memories):
            memory.set_slots(uploads[4 + n], Earlier(values[n], at) if convolves else None)
        if mask.ndim == 3:
            least = torch.finfo(self.model.dtype).min
            attention_mask = ((1 - attention_mask[:, None]) * least).to(self.model.dtype)
        self._wanted = None if places is None else torch.from_numpy(places).to(self.device)
        try:
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                logits_to_keep=keep,
                use_cache=True,
            )
        finally:
            self._wanted = None
        if convolves:
            earlier.keep(cache.layers[self.depth], memories, ids.shape, self._blank)
        logits: Tensor = output.logits
        return logits


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, PromptEncoder]:
    """Load the model and its tokenizer, only from safetensors and without running code from the folder."""
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
        raise UsageError(
            f"{folder}: the weights lack {missing[0]} and {len(missing) - 1} more tensors; download the complete model"
        )
    return model, encoder
