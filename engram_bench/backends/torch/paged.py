"""Continuous batching (``generate_batch``): what a memory knows of the tokens in transformers' paged KV cache.

There a forward reads one row of tokens, which belong to several texts one after the other, and the cache holds each
token at a place of its own. What a memory knows after a token is kept under the same place. So texts that share the
pages of a common beginning share this, too.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from engram_bench.errors import UsageError
from engram_bench.memory.reading import ID, PADDING

FIXED = {  # of a ContinuousBatchingConfig: a memory reads the tokens on the host before each forward
    "use_cuda_graph": False,
    "use_async_batching": False,
    "max_blocks_per_request": 0,  # so that each forward is told the places of all tokens that it reads
}


class Text(NamedTuple):
    """The tokens of one text in a forward's row.

    Attributes:
        start, stop: its new tokens are those in the row from `start` to before `stop`.
        past: int64 [earlier tokens], their places in the cache.
        own: int64 [new tokens], places of the new tokens.
    """

    start: int
    stop: int
    past: NDArray[np.int64]
    own: NDArray[np.int64]


def is_paged(kwargs: Mapping[str, Any]) -> bool:
    """Whether a forward is one of continuous batching."""
    return kwargs.get("write_index") is not None and kwargs.get("cache") is not None


def texts_of(kwargs: Mapping[str, Any]) -> list[Text]:
    """The texts in the row of a forward under continuous batching, see transformers' ``PagedAttentionArgs``."""
    group = _group(kwargs["cache"])
    bounds = kwargs["cu_seq_lens_q"].tolist()
    positions = kwargs["position_ids"][0].tolist()
    read, write = (kwargs[name][group].cpu().numpy() for name in ("read_index", "write_index"))
    texts, at = list[Text](), 0
    for start, stop in itertools.pairwise(bounds):
        if stop > start:  # else it only fills up a batch of fixed size
            seen = positions[start]
            texts.append(Text(start, stop, read[at : at + seen], write[start:stop]))
            at += seen + stop - start
    return texts


def _full_attention_layer(config: Any) -> int:
    """A layer that sees all tokens.

    Raises:
        UsageError: there is none, so the cache forgets tokens.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"]
    if "full_attention" not in kinds:
        raise UsageError(
            "under continuous batching, an n-gram memory needs a layer without a sliding window, and this model has "
            "none; use model.generate with a padded batch"
        )
    return list(kinds).index("full_attention")


def _group(cache: Any) -> int:
    """Which of the cache's groups of layers has a place for every token."""
    layer = _full_attention_layer(cache.config)
    if hasattr(cache, "layer_to_allocator"):
        return int(cache.layer_to_allocator[layer].index)
    return int(cache.layer_index_to_group_indices[layer][0])  # transformers 5.17


class Pages:
    """What one memory knows after each token of one paged cache.

    Args:
        width: how many numbers there are for a token, see `memory.reading.Reading`.
    """

    def __init__(self, width: int) -> None:
        self._numbers = np.full((0, width), PADDING, dtype=np.int64)
        self._values: Tensor | None = None  # [places, memories, d], what a convolution reads

    def keep(self, texts: Sequence[Text], numbers: NDArray[np.int64], values: Tensor | None) -> None:
        """Add the new tokens of a forward.

        Args:
            texts: from `texts_of`.
            numbers: int64 [tokens, width], of the whole row.
            values: float32 [memories, tokens, d]; None without a convolution.
        """
        own = np.concatenate([text.own for text in texts])
        row = np.concatenate([np.arange(text.start, text.stop) for text in texts])
        missing = int(own.max()) + 1 - len(self._numbers)
        if missing > 0:
            missing += len(self._numbers)  # so that tokens are seldom copied
            more = np.full((missing, self._numbers.shape[1]), PADDING, dtype=np.int64)
            self._numbers = np.concatenate([self._numbers, more])
        self._numbers[own] = numbers[row]
        if values is not None:
            new = values[:, torch.from_numpy(row).to(values.device)].transpose(0, 1)
            if self._values is None:
                self._values = new[:0]
            blank = self._values.new_zeros(len(self._numbers) - len(self._values), *new.shape[1:])
            self._values = torch.cat([self._values, blank]) if len(blank) else self._values
            self._values[torch.from_numpy(own).to(values.device)] = new

    def past(self, texts: Sequence[Text]) -> Past | None:
        """What is known of the texts' earlier tokens; None if there are none.

        Raises:
            UsageError: the memory has not seen one of them.
        """
        places = [text.past for text in texts]
        if not any(len(one) for one in places):
            return None
        found = Past([self._numbers[one[one < len(self._numbers)]] for one in places])
        known = [len(one) for one in found.texts]
        if known != [len(one) for one in places] or any((one[:, ID] == PADDING).any() for one in found.texts):
            raise UsageError(
                "the KV cache holds tokens that this memory has not seen; attach the memory before continuous batching "
                "begins"
            )
        return found

    def earlier(
        self, texts: Sequence[Text], tokens: int, taps: Sequence[int], memories: int, blank: Tensor
    ) -> tuple[NDArray[np.int64], list[Tensor]]:
        """What the memories' convolutions read, as `backends.torch.earlier.before` returns it for one row."""
        needed = list[int]()
        places = np.zeros((1, tokens, len(taps)), dtype=np.int64)
        new = np.full((1, tokens, len(taps)), False)
        for text in texts:
            for at in range(text.start, text.stop):
                for n, back in enumerate(taps):
                    position = len(text.past) + at - text.start - back
                    if position >= len(text.past):
                        places[0, at, n], new[0, at, n] = 1 + at - back, True
                    elif position >= 0:
                        needed.append(int(text.past[position]))
                        places[0, at, n] = len(needed)
        places[new] += len(needed)
        if self._values is None or not needed:
            return places, [blank[None][:0]] * memories
        values = self._values[torch.tensor(needed, device=self._values.device)]
        return places, list(values.unbind(1))


class Past:
    """What is known of several texts' earlier tokens, like `backends.torch.calls.ReadingLayer`.

    Args:
        texts: for each, int64 [tokens, width].
    """

    def __init__(self, texts: Sequence[NDArray[np.int64]]) -> None:
        self.texts = texts

    def get_seq_length(self) -> int:
        return max(len(text) for text in self.texts)

    def numbers(self, rows: int | slice, count: int = 0) -> NDArray[np.int64]:
        """See `ReadingLayer.numbers`. A text that is shorter than another has padding on its left."""
        if isinstance(rows, int):
            return self.texts[rows][-count:]
        texts = [text[-count:] for text in self.texts[rows]]
        longest = max(len(text) for text in texts)
        found = np.full((len(texts), longest, self.texts[0].shape[1]), PADDING, dtype=np.int64)
        for row, text in zip(found, texts, strict=True):
            row[longest - len(text) :] = text
        return found

    def newest(self, count: int) -> NDArray[np.int64]:
        """See `ReadingLayer.newest`; here padding never stands between tokens."""
        return self.numbers(slice(None), count)


def started(model: Any) -> Callable[..., Any]:
    """A model's ``init_continuous_batching`` while a memory is attached.

    Its result raises a `UsageError` for what a memory cannot follow: an error that only a forward raises would end in
    transformers' log, because the forwards run in a thread of their own.
    """
    original = model.init_continuous_batching

    def init_continuous_batching(*args: Any, **kwargs: Any) -> Any:
        if not hasattr(transformers, "ContinuousBatchingConfig"):
            raise UsageError(
                "under continuous batching, an n-gram memory needs transformers 5.17 or newer; use model.generate with "
                "a padded batch"
            )
        _full_attention_layer(model.config.get_text_config())
        given = inspect.signature(original).bind(*args, **kwargs)
        generation = given.arguments.get("generation_config") or model.generation_config
        if (generation.num_return_sequences or 1) > 1:
            raise UsageError(
                "under continuous batching, an n-gram memory gives one answer for each prompt; in place of "
                f"num_return_sequences={generation.num_return_sequences}, pass each prompt so many times"
            )
        config = given.arguments.get("continuous_batching_config")
        config = config or getattr(generation, "continuous_batching_config", None)
        config = copy.copy(config) or transformers.ContinuousBatchingConfig()
        if config.cpu_offload_space:
            raise UsageError(
                "under continuous batching, an n-gram memory cannot follow tokens that are moved to the host; leave "
                "cpu_offload_space at 0"
            )
        for name, value in FIXED.items():
            setattr(config, name, value)
        given.arguments["continuous_batching_config"] = config
        return original(*given.args, **given.kwargs)

    return init_continuous_batching
