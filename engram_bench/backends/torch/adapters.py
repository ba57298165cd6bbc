"""The memories of the torch backend, n-gram and single-token, as adapters; LoRA is in `peft_methods`.

Each adapter attaches itself to a model, lists its trainable parameters and saves itself. None changes a weight of the
backbone: memories are hooks, so detaching one restores the model bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engram_bench.backends.base import Adapter, WithoutNgrams
from engram_bench.backends.together import Together
from engram_bench.backends.torch.peft_methods import LoraAdapter
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.addresses import Addresses, Confidence, Spans, damaged, placed
from engram_bench.memory.torch import EngramLayer, MemoryLayer, UnigramLayer, decoder_layers, injected
from engram_bench.prompts import Pair, Prompt, PromptEncoder, Span, ngram_windows
from engram_bench.variants.configs import EngramConfig, UnigramConfig


class TorchAdapter(Adapter, Protocol):
    """What this backend's training, decoding and scoring need from an adapter, beyond `base.Adapter`.

    Attributes:
        first_layer: the lowest layer it acts on.
    """

    first_layer: int

    def on(self, model: nn.Module) -> AbstractContextManager[None]: ...
    def memories(self) -> Sequence[MemoryLayer]: ...
    def parameter_groups(self) -> list[dict[str, Any]]: ...


class EngramAdapter:
    """`EngramLayer`s on the inputs of the configured layers, and the index of the trained keys."""

    def __init__(self, addresses: Addresses, layers: dict[int, EngramLayer]) -> None:
        self.config, self.addresses, self.layers = addresses.config, addresses, layers
        self.ngram_size, self.first_layer = max(self.config.orders), min(self.config.layer_ids)
        self.acts_on_text, self.acts_on_template = self.config.acts_on_text, self.config.acts_on_template
        self._span: Spans = addresses.span
        self.confidence: Confidence | None = None  # a router's, if there is one

    @classmethod
    def create(
        cls, model: nn.Module, config: EngramConfig, encoder: PromptEncoder, pairs: Sequence[Pair]
    ) -> EngramAdapter:
        return cls._build(model, Addresses.of_training(placed(config, len(decoder_layers(model))), encoder, pairs))

    @classmethod
    def load(
        cls,
        model: Any,
        config: EngramConfig,
        encoder: PromptEncoder,
        folder: Path,
        damage: str | None = None,
    ) -> EngramAdapter:
        """Load a memory; `damage` changes its rows for a control (see `addresses.damaged`)."""
        config = placed(config, len(decoder_layers(model)))
        arrays = weights.load(folder, "engram", asdict(config))
        adapter = cls._build(model, Addresses.from_arrays(config, encoder, arrays))
        fill(folder, {str(layer): memory for layer, memory in adapter.layers.items()}, arrays)
        for memory in adapter.layers.values():
            memory.fuse(model.dtype)
            if damage:
                memory.table.data.copy_(torch.from_numpy(damaged(memory.table.detach().cpu().numpy(), damage)))
        return adapter

    @classmethod
    def _build(cls, model: Any, addresses: Addresses) -> EngramAdapter:
        config, hasher = addresses.config, addresses.hasher
        size = model.config.hidden_size
        layers = {layer: EngramLayer(config, layer, hasher, rows, size) for layer, rows in addresses.rows.items()}
        return cls(addresses, {layer: memory.to(model.device).eval() for layer, memory in layers.items()})

    def readdress(self, addresses: Addresses) -> None:
        """Switch to other addresses: new rows start at zero, rows no longer listed are dropped."""
        self.addresses, self._span = addresses, addresses.span
        for layer, memory in self.layers.items():
            memory.hold(addresses.rows[layer])

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        return injected(model, self.layers)

    def memories(self) -> Sequence[MemoryLayer]:
        return list(self.layers.values())

    def parameter_groups(self) -> list[dict[str, Any]]:
        named = [item for memory in self.layers.values() for item in memory.named_parameters()]
        return [
            {"params": [p for name, p in named if name == "table"], "tables": True},
            {"params": [p for name, p in named if name != "table"], "tables": False},
        ]

    def route(self, confidence: Confidence) -> None:
        """Read nothing in prompts in which a router finds no request; see `Addresses.routed_span`."""
        self.confidence, self._span = confidence, self.addresses.routed_span(confidence)

    def span(self, prompt: Prompt) -> Span | None:
        return self._span(prompt)

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        mark, on_text = self.addresses.mark, self.acts_on_text
        return ngram_windows(prompt, answer, self.ngram_size, self.span(prompt), mark, on_text=on_text)

    def found(self, prompt: Prompt) -> list[list[int]] | None:
        return self.addresses.found(prompt)

    def gates(self) -> list[float]:
        gates = (memory.gate for memory in self.layers.values())
        return [gate[0, -1, 0].item() for gate in gates if gate is not None]

    def train(self, mode: bool) -> None:
        for memory in self.layers.values():
            memory.train(mode)

    def parameter_count(self) -> int:
        every = sum(p.numel() for memory in self.layers.values() for p in memory.parameters())
        return every - self.config.width * len(self.layers)  # row 0 of each table stays zero

    def save(self, folder: Path) -> None:
        arrays = arrays_of({str(layer): memory for layer, memory in self.layers.items()})
        weights.save(folder, "engram", asdict(self.config), {**arrays, **self.addresses.to_arrays()})


class EngramLoraAdapter(Together):
    """peft's LoRA and the n-gram memory on one model."""

    parts = (EngramAdapter, LoraAdapter)
    first_layer = 0

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        with self.lora.on(model), injected(model, {n: _in_float32(memory) for n, memory in self.memory.layers.items()}):
            yield

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [*self.memory.parameter_groups(), *self.lora.parameter_groups()]


def _in_float32(memory: EngramLayer) -> Callable[[torch.Tensor], torch.Tensor]:
    """The memory without the autocast that a LoRA's training brings."""

    def run(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            added: torch.Tensor = memory(hidden)
            return added

    return run


class UnigramAdapter(WithoutNgrams):
    """`UnigramLayer`s on the outputs of all layers. They act on every token, including the template's."""

    first_layer = 0

    def __init__(self, config: UnigramConfig, layers: dict[int, UnigramLayer]) -> None:
        self.config, self.layers = config, layers

    @classmethod
    def create(
        cls, model: Any, config: UnigramConfig, encoder: PromptEncoder, pairs: Sequence[Pair] = ()
    ) -> UnigramAdapter:
        count, size = len(decoder_layers(model)), model.config.hidden_size
        return cls(config, {layer: UnigramLayer(config.slots, size).to(model.device) for layer in range(count)})

    @classmethod
    def load(cls, model: Any, config: UnigramConfig, encoder: PromptEncoder, folder: Path) -> UnigramAdapter:
        adapter = cls.create(model, config, encoder)
        arrays = weights.load(folder, "unigram", asdict(config))
        fill(folder, {str(layer): memory for layer, memory in adapter.layers.items()}, arrays)
        for memory in adapter.layers.values():
            memory.cast_products(model.dtype)
        return adapter

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        return injected(model, self.layers, after=True)

    def memories(self) -> Sequence[MemoryLayer]:
        return list(self.layers.values())

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for m in self.layers.values() for p in m.parameters()], "tables": False}]

    def parameter_count(self) -> int:
        return sum(p.numel() for memory in self.layers.values() for p in memory.parameters())

    def save(self, folder: Path) -> None:
        arrays = arrays_of({str(layer): memory for layer, memory in self.layers.items()})
        weights.save(folder, "unigram", asdict(self.config), arrays)


def arrays_of(modules: dict[str, nn.Module]) -> dict[str, Any]:
    state = nn.ModuleDict(modules).state_dict()
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def fill(folder: Path, modules: dict[str, nn.Module], arrays: dict[str, Any]) -> None:
    try:
        nn.ModuleDict(modules).load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{folder}: this adapter does not fit the model or the variant ({reason}); {weights.ANEW}"
        ) from error
