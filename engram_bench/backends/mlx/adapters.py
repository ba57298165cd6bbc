"""The adapters of the MLX backend: LoRA by mlx-lm's tuner, the n-gram memory, the single-token memory.

Memories are saved in the format all backends share; LoRA in mlx-lm's, so that its own tools load it. None ever changes
a weight of the backbone, so taking an adapter off restores the model bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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

from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.addresses import Addresses, Spans, damaged
from engram_bench.memory.mlx import EngramLayer, MemoryLayer, UnigramLayer, injected
from engram_bench.prompts import Pair, Prompt, PromptEncoder
from engram_bench.variants import EngramConfig, LoraConfig, UnigramConfig, Variant

LORA_WEIGHTS, LORA_CONFIG = "adapters.safetensors", "adapter_config.json"  # the names mlx-lm looks for
PREFIX = "layer"


class Adapter(Protocol):
    """What training, decoding and scoring need of an adapter.

    Attributes:
        ngram_size: how many tokens the windows it is given hold.
        acts_on_template: whether it changes the tokens all prompts share.
        acts_on_text: whether it changes the user's, and not just the prompt's last token and the answer.
        trained: the module whose parameters train; LoRA's is the model itself, and only while attached.
    """

    ngram_size: int
    acts_on_template: bool
    acts_on_text: bool
    trained: nn.Module

    def on(self, model: nn.Module) -> AbstractContextManager[None]: ...
    def memories(self) -> Sequence[MemoryLayer]: ...
    def span(self, prompt: Prompt) -> tuple[int, int] | None: ...
    def is_table(self, name: str) -> bool: ...
    def parameters(self) -> int: ...
    def save(self, folder: Path) -> None: ...


def create(model: nn.Module, variant: Variant, encoder: PromptEncoder, pairs: Sequence[Pair]) -> Adapter:
    """A fresh adapter; MLX's global generator decides its initial numbers. `pairs` fix which rows a memory has."""
    if isinstance(variant.config, LoraConfig):
        return LoraAdapter.create(model, variant.config)
    if isinstance(variant.config, EngramConfig):
        return EngramAdapter(model, Addresses.of_training(variant.config, encoder, pairs))
    assert isinstance(variant.config, UnigramConfig), f"{variant.name} has nothing to train"
    return UnigramAdapter(model, variant.config)


def load(model: nn.Module, variant: Variant, encoder: PromptEncoder, folder: Path) -> Adapter:
    """A saved adapter, damaged or routed where its variant says so."""
    if isinstance(variant.config, LoraConfig):
        return LoraAdapter.load(model, folder)
    if isinstance(variant.config, EngramConfig):
        arrays = weights.load(folder, "engram", asdict(variant.config))
        memory = EngramAdapter(model, Addresses.from_arrays(variant.config, encoder, arrays))
        _fill(folder, memory.trained, arrays)
        if variant.damage:
            memory.damage(variant.damage)
        if variant.router == "rules":
            memory.span = memory.addresses.routed_span(encoder)
        return memory
    assert isinstance(variant.config, UnigramConfig)
    unigram = UnigramAdapter(model, variant.config)
    _fill(folder, unigram.trained, weights.load(folder, "unigram", asdict(variant.config)))
    return unigram


class LoraAdapter:
    """mlx-lm's LoRA on every linear layer but the head, put on and taken off by its own functions.

    Args:
        config: mlx-lm's adapter config.
        state: parameters by name; None: fresh ones, as mlx-lm draws them.
    """

    ngram_size = 1
    acts_on_template = acts_on_text = True

    def __init__(self, config: dict[str, Any], state: dict[str, mx.array] | None) -> None:
        self._config, self._state = config, state

    @classmethod
    def create(cls, model: nn.Module, config: LoraConfig) -> LoraAdapter:
        parameters = {"rank": config.rank, "scale": config.alpha / config.rank, "dropout": 0.0}
        layers = len(model.layers)
        return cls({"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}, None)

    @classmethod
    def load(cls, model: nn.Module, folder: Path) -> LoraAdapter:
        try:
            config = json.loads((folder / LORA_CONFIG).read_text(encoding="utf-8"))
            load_adapters(model, str(folder))
            return cls(config, _trained(model))
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
            self._state = _trained(model)
            remove_lora_layers(model)
            del self.trained

    def memories(self) -> Sequence[MemoryLayer]:
        return ()

    def span(self, prompt: Prompt) -> tuple[int, int] | None:
        return None

    def is_table(self, name: str) -> bool:
        return False

    def parameters(self) -> int:
        return sum(array.size for array in (self._state or {}).values())

    def save(self, folder: Path) -> None:
        mx.save_safetensors(str(folder / LORA_WEIGHTS), _trained(self.trained))
        text = json.dumps(self._config, indent=2, sort_keys=True)
        (folder / LORA_CONFIG).write_text(text + "\n", encoding="utf-8")


class EngramAdapter:
    """`EngramLayer`s on the inputs of the chosen layers, and where the rows of their tables lie."""

    acts_on_template = False

    def __init__(self, model: nn.Module, addresses: Addresses) -> None:
        config, hasher = addresses.config, addresses.hasher
        addresses.check_layers(len(model.layers))
        self.addresses, self.ngram_size, self.acts_on_text = addresses, max(config.orders), config.acts_on_text
        self.span: Spans = addresses.span
        size = model.args.hidden_size
        self.layers = {layer: EngramLayer(config, layer, hasher, rows, size) for layer, rows in addresses.rows.items()}
        self.trained = _together(self.layers)

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        return injected(model, self.layers)

    def memories(self) -> Sequence[MemoryLayer]:
        return list(self.layers.values())

    def is_table(self, name: str) -> bool:
        return name.endswith(".table")

    def parameters(self) -> int:
        arrays = _trained(self.trained)  # the first row of a table stays zero
        return sum((array[1:] if self.is_table(name) else array).size for name, array in arrays.items())

    def save(self, folder: Path) -> None:
        arrays = {**_arrays(self.trained), **self.addresses.to_arrays()}
        weights.save(folder, "engram", asdict(self.addresses.config), arrays)

    def damage(self, how: str) -> None:
        """Leave the gate as it is and take the contents away; see `addresses.damaged`."""
        for memory in self.layers.values():
            memory.table = mx.array(damaged(np.array(memory.table), how))


class UnigramAdapter:
    """`UnigramLayer`s on the outputs of all layers. They act on every token, so on the template too."""

    ngram_size = 1
    acts_on_template = acts_on_text = True

    def __init__(self, model: nn.Module, config: UnigramConfig) -> None:
        self.config = config
        size = model.args.hidden_size
        self.layers = {layer: UnigramLayer(config.slots, size) for layer in range(len(model.layers))}
        self.trained = _together(self.layers)

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        return injected(model, self.layers, after=True)

    def memories(self) -> Sequence[MemoryLayer]:
        return list(self.layers.values())

    def span(self, prompt: Prompt) -> tuple[int, int] | None:
        return None

    def is_table(self, name: str) -> bool:
        return False

    def parameters(self) -> int:
        return sum(array.size for array in _trained(self.trained).values())

    def save(self, folder: Path) -> None:
        weights.save(folder, "unigram", asdict(self.config), _arrays(self.trained))


def _together(layers: dict[int, Any]) -> nn.Module:
    """One module of all layers' memories. Its names start with a letter: MLX takes a number for a place in a list."""
    module = nn.Module()
    for layer, memory in layers.items():
        module[f"{PREFIX}{layer}"] = memory
    return module.eval()


def _trained(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.trainable_parameters()))


def _arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    """By name in the adapter format, LAYER.PARAMETER."""
    return {name.removeprefix(PREFIX): np.array(array) for name, array in tree_flatten(module.parameters())}


def _fill(folder: Path, module: nn.Module, arrays: dict[str, NDArray[Any]]) -> None:
    try:
        module.load_weights([(PREFIX + name, mx.array(array)) for name, array in arrays.items()])
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{folder}: this adapter is of another model or shape ({reason})") from error
