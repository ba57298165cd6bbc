"""An n-gram memory on a transformers model that runs under the model's own forward and ``generate``.

``` python
model = AutoModelForCausalLM.from_pretrained(folder)
memory = EngramMemory.from_pretrained("my-adapter", model, AutoTokenizer.from_pretrained(folder))
with memory.attached():
    model.generate(**inputs)
```

What a token reads follows from the ids up to it. So answers do not depend on the KV cache, on the parts in which a text
reaches the model, or on padding. docs/transformers.md lists the ways of calling a model, and which are refused.

In raw text, without the chat template, a memory with ``span: key`` takes the last stored key so far. An answer may
begin after the key, and after each later token that ends with ``: ? = >`` or a line break. A memory with ``span: text``
acts on every token of raw text. `memory.reading` has the whole rule. A memory with ``span: all`` acts on every token of
any text.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import Cache

from engram_bench.backends.torch import calls, earlier, paged
from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.backends.torch.device import uploaded
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.reading import PADDING, Reading, Row
from engram_bench.memory.torch import Earlier, injected
from engram_bench.memory.whole_text import WholeText
from engram_bench.prompts import ABSENT, PromptEncoder


class Call(threading.local):
    """What one forward pass adds to the cache. Each thread has its own, so threads may share a model."""

    numbers: NDArray[np.int64] | None = None
    texts: Sequence[paged.Text] = ()  # under continuous batching


_attached: WeakKeyDictionary[nn.Module, list[EngramAdapter]] = WeakKeyDictionary()  # by model
_count = itertools.count()
NONE_EARLIER: tuple[NDArray[np.int64], list[Tensor]] = (np.empty(0, np.int64), [])


class EngramMemory:
    """An n-gram memory and the model it belongs to.

    While a memory is attached, several threads may call the model.

    Args:
        model: a transformers causal language model, a PEFT model of one, or what ``torch.compile`` made of either.
        encoder: encoder of the model's tokenizer.
        adapter: the memory.

    Raises:
        UsageError: the chat template cannot be found in token ids, or the memory acts on a key itself.
    """

    def __init__(self, model: nn.Module, encoder: PromptEncoder, adapter: EngramAdapter) -> None:
        self.model, self.encoder, self.adapter = model, encoder, adapter
        addresses, whole = adapter.addresses, adapter.acts_on_template
        self._reading = WholeText(encoder, addresses) if whole else Reading(encoder, addresses, adapter.span)
        self._call, self._number = Call(), next(_count)
        self._pages = WeakKeyDictionary[Any, paged.Pages]()  # by paged cache
        self._blank = torch.zeros(_inner(model).config.get_text_config().hidden_size, device=_inner(model).device)

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: nn.Module, tokenizer: Any) -> EngramMemory:
        """Load the memory that `save_pretrained` or ``engram-bench train engram-keyed --out`` wrote to a folder.

        Raises:
            UsageError: a file is missing or damaged, the memory belongs to a model of another shape, or it was trained
                together with a LoRA that the model lacks.
        """
        encoder, path = PromptEncoder(tokenizer), Path(folder)
        if weights.beside_lora(path) and not hasattr(model, "peft_config"):
            mend = "load it first, with peft.PeftModel.from_pretrained(model, folder)"
            raise UsageError(f"{path}: this memory was trained together with the LoRA beside it; {mend}")
        return cls(model, encoder, EngramAdapter.load(_inner(model), weights.engram_config(path), encoder, path))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write one safetensors file and one JSON file into a folder, creating it if needed."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.adapter.save(Path(folder))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the memory to the model while the context lasts; afterwards the model is as before, bit for bit.

        A model may have several memories. In a layer that two of them act on, the one attached last acts on what the
        other has made of the hidden states. A memory that finds none of its keys changes nothing.

        Raises:
            UsageError: the memory is attached to the model already. The model's forward and ``generate`` raise it too,
                if they are called in a way that the memory cannot follow.
        """
        inner = _inner(self.model)
        attached = _attached.setdefault(inner, [])
        if self.adapter in attached:
            raise UsageError("this memory is attached already; several threads may share one context")
        if "torch._dynamo" in sys.modules:  # code that was compiled earlier would run without the memory
            torch.compiler.reset()
        handles = [
            inner.register_forward_pre_hook(_eager(self._before), with_kwargs=True),
            inner.register_forward_hook(_eager(self._after), with_kwargs=True),
        ]
        attached.append(self.adapter)
        if len(attached) == 1 and hasattr(inner, "init_continuous_batching"):
            inner.init_continuous_batching = paged.started(inner)
        _forget_batches(inner)
        try:
            with injected(inner, {layer: _eager(memory.forward) for layer, memory in self.adapter.layers.items()}):
                yield
        finally:
            attached.remove(self.adapter)
            if not attached:
                vars(inner).pop("init_continuous_batching", None)
            self._pages.clear()
            _forget_batches(inner)
            for handle in handles:
                handle.remove()

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise UsageError("an n-gram memory needs input_ids; it cannot read inputs_embeds, so pass the token ids")
        tokens = ids.cpu().numpy()
        if tokens.size and tokens.min() < 0:
            raise UsageError(f"input_ids has {tokens.min()}; token ids are 0 or more (-100 is for labels only)")
        memories = self.adapter.memories()
        taps = earlier.taps_of(memories)
        if paged.is_paged(kwargs):
            windows, where, values = self._in_pages(tokens, kwargs, taps)
        else:
            cache = calls.cache_of(kwargs)
            layer = calls.seen_layer(cache, self._number)
            seen = 0 if layer is None else layer.get_seq_length()
            mask = calls.mask_of(kwargs, cache, ids, seen)
            if layer is not None and mask is not None and mask.shape[1] == seen + ids.shape[1]:
                self._hide(layer, mask[:, :seen])
            real = np.ones(ids.shape, bool) if mask is None else mask[:, -ids.shape[1] :].cpu().numpy()
            windows, self._call.numbers = self._read(tokens, real, layer)
            where, values = self._earlier(real, layer) if taps else NONE_EARLIER
        found = [memory.slots_for(tokens, windows) for memory in memories]
        at, *uploads = uploaded(str(ids.device), [where, *found])
        for n, memory in enumerate(memories):
            memory.set_slots(uploads[n], Earlier(values[n], at) if taps else None)

    def _in_pages(
        self, tokens: NDArray[np.int64], kwargs: dict[str, Any], taps: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Tensor]]:
        """Under continuous batching: the n-grams as `_read` returns them, and what `_earlier` returns."""
        texts, count = paged.texts_of(kwargs), len(self.adapter.memories())
        pages = self._pages.setdefault(kwargs["cache"], paged.Pages(len(self._reading.start)))
        longest = max(text.stop - text.start for text in texts)
        rows = np.zeros((len(texts), longest), dtype=np.int64)  # one for each text, padded on its left
        real = np.zeros(rows.shape, bool)
        for n, text in enumerate(texts):
            rows[n, text.start - text.stop :] = tokens[0, text.start : text.stop]
            real[n, text.start - text.stop :] = True
        windows = np.full((1, tokens.shape[1], self._reading.size + 1), ABSENT, dtype=np.int64)
        numbers = np.full((1, tokens.shape[1], len(self._reading.start)), PADDING, dtype=np.int64)
        found = self._read(rows, real, pages.past(texts))
        for n, text in enumerate(texts):
            for row, own in zip((windows, numbers), found, strict=True):
                row[0, text.start : text.stop] = own[n, text.start - text.stop :]
        self._call.numbers, self._call.texts = numbers, texts
        before = pages.earlier(texts, tokens.shape[1], taps, count, self._blank) if taps else NONE_EARLIER
        return windows, *before

    def _earlier(
        self, real: NDArray[np.bool_], layer: calls.ReadingLayer | None
    ) -> tuple[NDArray[np.int64], list[Tensor]]:
        """What the memories' convolutions read, see `earlier.before`; `real` and `layer` as for `_read`."""
        shown = real if layer is None else np.concatenate([~layer.padding.cpu().numpy(), real], axis=1)
        count, memories = real.shape[1], self.adapter.memories()
        columns = earlier.columns_back(shown, count, earlier.taps_of(memories))
        places, first = earlier.places_of(columns, 0, shown.shape[1] - count)
        if layer is None:
            return places, [self._blank[None][:0]] * len(memories)
        return places, [layer.values[:, n, first:].flatten(0, 1) for n in range(len(memories))]

    def _after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        numbers, self._call.numbers = self._call.numbers, None
        if numbers is not None and paged.is_paged(kwargs):
            values = self._values(numbers)
            self._pages[kwargs["cache"]].keep(self._call.texts, numbers[0], None if values is None else values[0])
            return
        outputs = output if isinstance(output, tuple) else output.values()
        given = calls.cache_of(kwargs)
        cache = given if given is not None else next((part for part in outputs if isinstance(part, Cache)), None)
        if cache is None or numbers is None:
            return
        layer = calls.layer_of(cache, self._number)
        if layer is None:
            layer = calls.ReadingLayer(self._number, cache.is_compileable)
            cache.layers.append(layer)
        layer.memory = self._number  # a layer that was reset may be another memory's
        layer.add(numbers, (args[0] if args else kwargs["input_ids"]).device, self._values(numbers))

    def _values(self, numbers: NDArray[np.int64]) -> Tensor | None:
        """What later tokens' convolutions read of the last forward, see `earlier.together`; None without one."""
        memories = self.adapter.memories()
        return earlier.together(memories, numbers.shape[:2], self._blank) if earlier.taps_of(memories) else None

    def _read(
        self, tokens: NDArray[np.int64], real: NDArray[np.bool_], layer: calls.ReadingLayer | paged.Past | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What new tokens read and what the cache keeps.

        Returns:
            int64 [batch, tokens, N + 1], the n-grams, and int64 [batch, tokens, width].

        Args:
            tokens: [batch, tokens] token ids.
            real: [batch, tokens], false for padding.
            layer: what the memory knows of the cached tokens; None if there are none.
        """
        reading, (batch, count) = self._reading, tokens.shape
        windows = np.full((batch, count, reading.size + 1), ABSENT, dtype=np.int64)
        numbers = np.full((batch, count, len(reading.start)), PADDING, dtype=np.int64)
        slow = np.ones(batch, bool)
        if layer is not None and count == 1 and real.all():
            last = layer.numbers(slice(None), 1)[:, 0]
            windows[:, 0], numbers[:, 0], slow = reading.step(last, tokens[:, 0])
        past = layer.newest(reading.reach) if layer is not None and slow.any() else None
        for n in np.flatnonzero(slow).tolist():
            row = Row(reading.start)
            if layer is not None and past is not None:
                more = layer.get_seq_length() > past.shape[1]
                row = Row(reading.start, past[n], partial(layer.numbers, n) if more else None)
            there = real[n].nonzero()[0]
            if len(there):
                windows[n, there] = [reading.read(row, token) for token in tokens[n, there].tolist()]
                numbers[n, there] = row.added
        return windows, numbers

    def _hide(self, layer: calls.ReadingLayer, shown: Tensor) -> None:
        """Read the cached tokens again if the mask now hides some, such as the padding behind an ended answer.

        Raises:
            UsageError: the mask shows tokens that were padding when they were cached.
        """
        if torch.equal(layer.padding, ~shown):
            return
        if bool((layer.padding & shown).any()):
            raise UsageError(
                "attention_mask is 1 for tokens that were padding when past_key_values was made; pass the mask of then"
            )
        layer.replace(self._read(layer.numbers(slice(None))[..., 0], shown.cpu().numpy())[1])


def _inner(model: Any) -> Any:
    """The transformers model in a PEFT model, or in what ``torch.compile`` returned: both call it themselves."""
    if hasattr(model, "_orig_mod"):
        return _inner(model._orig_mod)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same outside compiled code: ids are read on the host, and each thread has its own forward."""
    disable: Any = torch.compiler.disable
    eager: Callable[..., Any] = disable(function, reason="an n-gram memory runs outside compiled code")
    return eager


def _forget_batches(model: Any) -> None:
    """End the continuous batching that a model keeps for later calls: its cache was made with other memories."""
    if hasattr(model, "destroy_cached_continuous_batching_manager"):
        model.destroy_cached_continuous_batching_manager()
