"""An n-gram memory on a transformers model that runs under the model's own ``generate``.

``` python
model = AutoModelForCausalLM.from_pretrained(folder)
memory = EngramMemory.from_pretrained("my-adapter", model, AutoTokenizer.from_pretrained(folder))
with memory.attached():
    model.generate(**inputs)  # greedy, sampling or beam search; batches with left padding; with or without a KV cache
```
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.backends.torch.device import uploaded
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.prompts import ABSENT, PromptEncoder, extend_windows, ngram_windows


class WindowsLayer(DynamicLayer):  # type: ignore[misc]
    """The n-gram that each cached token reads, [batch, 1, tokens, N], stored as an extra layer of the KV cache.

    So reordering beams, dropping rows and cropping tokens of the cache changes the n-grams too.
    """


class Call(threading.local):
    """The n-grams of one forward pass. Each thread has its own, so threads may share a model."""

    windows: NDArray[np.int64] | None = None


_with_memory: WeakSet[nn.Module] = WeakSet()  # models that have a memory attached


class EngramMemory:
    """An n-gram memory and the model it belongs to.

    The first forward with a new KV cache must contain the whole prompt; all later tokens count as the answer. While a
    memory is attached, several threads may call the model.

    Args:
        model: a transformers causal language model, or a PEFT model of one.
        encoder: encoder of the model's tokenizer; its chat template separates the prompt from the answer.
        adapter: the memory.

    Raises:
        UsageError: the tokenizer has no chat template.
    """

    def __init__(self, model: nn.Module, encoder: PromptEncoder, adapter: EngramAdapter) -> None:
        if not encoder.has_template:
            raise UsageError("the tokenizer has no chat template; set tokenizer.chat_template")
        self.model, self.encoder, self.adapter = model, encoder, adapter
        self._call = Call()

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: nn.Module, tokenizer: Any) -> EngramMemory:
        """Load the memory that `save_pretrained` or ``engram-bench train engram --out`` wrote to a folder.

        Raises:
            UsageError: a file is missing or damaged, or the memory belongs to a model of another shape.
        """
        encoder, path = PromptEncoder(tokenizer), Path(folder)
        return cls(model, encoder, EngramAdapter.load(model, weights.engram_config(path), encoder, path))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write one safetensors file and one JSON file into a folder, creating it if needed."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.adapter.save(Path(folder))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the memory to the model while the context lasts; afterwards the model is as before, bit for bit.

        Raises:
            UsageError: another memory is attached to the model.
        """
        # PEFT's own `generate` calls the model inside the wrapper, and so does its forward.
        model: Any = self.model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        if inner in _with_memory:
            raise UsageError("this model has a memory attached; leave its context before you attach another")
        handles = [
            inner.register_forward_pre_hook(self._before, with_kwargs=True),
            inner.register_forward_hook(self._after, with_kwargs=True),
        ]
        _with_memory.add(inner)
        try:
            with self.adapter.on(inner):
                yield
        finally:
            _with_memory.discard(inner)
            for handle in handles:
                handle.remove()

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise ValueError("an n-gram memory needs input_ids; it cannot read inputs_embeds")
        tokens, cached = ids.cpu().numpy(), _windows_layer(kwargs.get("past_key_values"))
        if cached is None or cached.get_seq_length() == 0:
            windows = self._prompt_windows(tokens, kwargs.get("attention_mask"))
        else:
            windows = _answer_windows(tokens, cached.keys[:, 0, -1].cpu().numpy())
        self._call.windows = windows
        memories = self.adapter.memories()
        found = [memory.slots_for(tokens, windows) for memory in memories]
        for memory, slots in zip(memories, uploaded(str(ids.device), found), strict=True):
            memory.set_slots(slots)

    def _after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if isinstance(cache, Cache):
            layer = _windows_layer(cache)
            if layer is None:
                layer = WindowsLayer()
                cache.layers.append(layer)
            device = output.logits.device  # transformers reorders beams on this device
            windows = torch.from_numpy(self._call.windows)[:, None].to(device)
            layer.update(windows, windows[..., :0])

    def _prompt_windows(self, ids: NDArray[np.int64], mask: Tensor | None) -> NDArray[np.int64]:
        """int64 [batch, tokens, N + 1] for whole prompts; `ABSENT` for padding and for rows without the template."""
        windows = np.full((*ids.shape, self.adapter.ngram_size + 1), ABSENT, dtype=np.int64)
        there = np.ones(ids.shape, bool) if mask is None else mask.cpu().numpy()[:, -ids.shape[1] :] > 0
        for row, (tokens, real) in enumerate(zip(ids, there, strict=True)):
            if pair := self.encoder.parse(tokens[real].tolist()):
                span, size = self.adapter.span(pair[0]), self.adapter.ngram_size
                on_text = self.adapter.acts_on_text
                windows[row, real] = ngram_windows(*pair, size, span, self.encoder.eos_id, on_text=on_text)
        return windows


def _windows_layer(cache: Any) -> WindowsLayer | None:
    layers: Sequence[Any] = getattr(cache, "layers", ())
    return next((layer for layer in layers if isinstance(layer, WindowsLayer)), None)


def _answer_windows(ids: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Windows [batch, tokens, N + 1] of new answer tokens `ids`, which follow the windows `last` [batch, N + 1]."""
    steps = []
    for column in ids.T:
        last = extend_windows(last, column)
        steps.append(last)
    return np.stack(steps, axis=1)
