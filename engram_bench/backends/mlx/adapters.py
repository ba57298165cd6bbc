"""The adapters of the MLX backend: LoRA by mlx-lm's tuner, the n-gram memory, the single-token memory.

Memories are saved in the format of all backends, a LoRA in mlx-lm's, so that mlx-lm's tools load it. No adapter changes
a weight of the backbone, so detaching it restores the model bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters, remove_lora_layers
from numpy.typing import NDArray

from engram_bench.backends.base import Adapter, WithoutNgrams
from engram_bench.backends.together import Together
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.addresses import Addresses, Confidence, Spans, damaged, placed
from engram_bench.memory.mlx import EngramLayer, MemoryLayer, UnigramLayer, injected
from engram_bench.prompts import Pair, Prompt, PromptEncoder, Span, ngram_windows
from engram_bench.variants.configs import EngramConfig, LoraConfig, UnigramConfig

LORA_WEIGHTS, LORA_CONFIG = "adapters.safetensors", "adapter_config.json"  # the names mlx-lm looks for
PREFIX = "layer"


class MlxAdapter(Adapter, Protocol):
    """What this backend's training, decoding and scoring need from an adapter, beyond `base.Adapter`.

    Attributes:
        trained: the module whose parameters train. For a LoRA it is the model, and exists only while attached.
    """

    trained: nn.Module

    def on(self, model: nn.Module) -> AbstractContextManager[None]: ...
    def memories(self) -> Sequence[MemoryLayer]: ...
    def is_table(self, name: str) -> bool: ...


class LoraAdapter(WithoutNgrams):
    """mlx-lm's LoRA on all linear layers of the last decoder layers, attached and detached by mlx-lm's functions.

    Args:
        config: mlx-lm's adapter config.
        state: parameters by name; None lets mlx-lm initialize new ones.
    """

    def __init__(self, config: dict[str, Any], state: dict[str, mx.array] | None) -> None:
        self._config, self._state = config, state

    @classmethod
    def create(cls, model: nn.Module, config: LoraConfig, encoder: PromptEncoder, pairs: Sequence[Pair]) -> LoraAdapter:
        parameters = {"rank": config.rank, "scale": config.alpha / config.rank, "dropout": 0.0}
        layers = len(config.layers(len(model.layers)))
        return cls({"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}, None)

    @classmethod
    def load(cls, model: nn.Module, config: LoraConfig, encoder: PromptEncoder, folder: Path) -> LoraAdapter:
        try:
            stored = json.loads((folder / LORA_CONFIG).read_text(encoding="utf-8"))
            load_adapters(model, str(folder))
            return cls(stored, trained_in(model))
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{folder}: this adapter cannot be read ({reason}); {weights.ANEW}") from error
        finally:
            remove_lora_layers(model)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        self.trained = model
        try:
            linear_to_lora_layers(model, self._config["num_layers"], self._config["lora_parameters"])
            if self._state is not None:
                model.load_weights(list(self._state.items()), strict=False)
            mx.eval(model.trainable_parameters())
            yield
        finally:
            self._state = trained_in(model)
            remove_lora_layers(model)
            del self.trained

    def memories(self) -> Sequence[MemoryLayer]:
        return ()

    def is_table(self, name: str) -> bool:
        return False

    def parameter_count(self) -> int:
        return sum(array.size for array in (self._state or {}).values())

    def save(self, folder: Path) -> None:
        mx.save_safetensors(str(folder / LORA_WEIGHTS), trained_in(self.trained))
        text = json.dumps(self._config, indent=2, sort_keys=True)
        (folder / LORA_CONFIG).write_text(text + "\n", encoding="utf-8")


class EngramAdapter:
    """`EngramLayer`s on the inputs of the configured layers, and the addresses of their table rows."""

    def __init__(self, model: nn.Module, addresses: Addresses) -> None:
        config, hasher = addresses.config, addresses.hasher
        self.addresses, self.ngram_size = addresses, max(config.orders)
        self.acts_on_text, self.acts_on_template = config.acts_on_text, config.acts_on_template
        self._span: Spans = addresses.span
        self.confidence: Confidence | None = None  # a router's, if there is one
        size = model.args.hidden_size
        self.layers = {layer: EngramLayer(config, layer, hasher, rows, size) for layer, rows in addresses.rows.items()}
        self.trained = together(self.layers)

    @classmethod
    def create(
        cls, model: nn.Module, config: EngramConfig, encoder: PromptEncoder, pairs: Sequence[Pair]
    ) -> EngramAdapter:
        return cls(model, Addresses.of_training(placed(config, len(model.layers)), encoder, pairs))

    @classmethod
    def load(
        cls,
        model: nn.Module,
        config: EngramConfig,
        encoder: PromptEncoder,
        folder: Path,
        damage: str | None = None,
    ) -> EngramAdapter:
        """Load a memory; `damage` changes its rows for a control (see `addresses.damaged`)."""
        config = placed(config, len(model.layers))
        arrays = weights.load(folder, "engram", asdict(config))
        adapter = cls(model, Addresses.from_arrays(config, encoder, arrays))
        fill(folder, adapter.trained, arrays)
        if damage:
            for memory in adapter.layers.values():
                memory.table = mx.array(damaged(np.array(memory.table), damage))
        return adapter

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        return injected(model, self.layers)

    def memories(self) -> Sequence[MemoryLayer]:
        return list(self.layers.values())

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

    def is_table(self, name: str) -> bool:
        return is_table(name)

    def parameter_count(self) -> int:
        return numbers_in(self.trained)

    def save(self, folder: Path) -> None:
        arrays = {**arrays_of(self.trained), **self.addresses.to_arrays()}
        weights.save(folder, "engram", asdict(self.addresses.config), arrays)


class EngramLoraAdapter(Together):
    """mlx-lm's LoRA and the n-gram memory on one model."""

    parts = (EngramAdapter, LoraAdapter)

    def __init__(self, memory: EngramAdapter, lora: LoraAdapter) -> None:
        super().__init__(memory, lora)
        self.is_table = memory.is_table

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        with self.lora.on(model), self.memory.on(model):
            self.trained = nn.Module()
            self.trained["memory"], self.trained["lora"] = self.memory.trained, model
            try:
                yield
            finally:
                del self.trained


class UnigramAdapter(WithoutNgrams):
    """`UnigramLayer`s on the outputs of all layers. They act on every token, including the template's."""

    def __init__(self, model: nn.Module, config: UnigramConfig) -> None:
        self.config = config
        size = model.args.hidden_size
        self.layers = {layer: UnigramLayer(config.slots, size) for layer in range(len(model.layers))}
        self.trained = together(self.layers)

    @classmethod
    def create(
        cls, model: nn.Module, config: UnigramConfig, encoder: PromptEncoder, pairs: Sequence[Pair]
    ) -> UnigramAdapter:
        return cls(model, config)

    @classmethod
    def load(cls, model: nn.Module, config: UnigramConfig, encoder: PromptEncoder, folder: Path) -> UnigramAdapter:
        adapter = cls(model, config)
        fill(folder, adapter.trained, weights.load(folder, "unigram", asdict(config)))
        return adapter

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        return injected(model, self.layers, after=True)

    def memories(self) -> Sequence[MemoryLayer]:
        return list(self.layers.values())

    def is_table(self, name: str) -> bool:
        return False

    def parameter_count(self) -> int:
        return sum(array.size for array in trained_in(self.trained).values())

    def save(self, folder: Path) -> None:
        weights.save(folder, "unigram", asdict(self.config), arrays_of(self.trained))


def together(layers: Mapping[Any, Any]) -> nn.Module:
    """Put all layers' memories into one module. Names start with a letter, because MLX reads numbers as indices."""
    module = nn.Module()
    for layer, memory in layers.items():
        module[f"{PREFIX}{layer}"] = memory
    return module.eval()


def is_table(name: str) -> bool:
    """Whether the parameter of this name is a table of rows."""
    return name.endswith(".table")


def numbers_in(module: nn.Module) -> int:
    """How many numbers train; row 0 of each table stays zero."""
    arrays = trained_in(module)
    return sum((array[1:] if is_table(name) else array).size for name, array in arrays.items())


def trained_in(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.trainable_parameters()))


def arrays_of(module: nn.Module) -> dict[str, NDArray[Any]]:
    """All arrays by their names in the adapter format, LAYER.PARAMETER."""
    return {name.removeprefix(PREFIX): np.array(array) for name, array in tree_flatten(module.parameters())}


def fill(folder: Path, module: nn.Module, arrays: dict[str, NDArray[Any]]) -> None:
    try:
        module.load_weights([(PREFIX + name, mx.array(array)) for name, array in arrays.items()])
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{folder}: this adapter does not fit the model or the variant ({reason}); {weights.ANEW}"
        ) from error
