"""The adapters of the torch backend: LoRA and other methods by peft, the n-gram memory, the single-token memory.

Each adapter attaches itself to a model, lists its trainable parameters and saves itself. None changes a weight of the
backbone: LoRA stays unmerged and memories are hooks, so detaching an adapter restores the model bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from engram_bench.backends.base import Adapter, WithoutNgrams
from engram_bench.backends.together import Together
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.addresses import Addresses, Spans, damaged, placed
from engram_bench.memory.torch import EngramLayer, MemoryLayer, UnigramLayer, decoder_layers, injected, low_precision
from engram_bench.prompts import Pair, Prompt, PromptEncoder, Span
from engram_bench.variants.configs import EngramConfig, LoraConfig, UnigramConfig, UpperLayersConfig


class TorchAdapter(Adapter, Protocol):
    """What this backend's training, decoding and scoring need from an adapter, beyond `base.Adapter`.

    Attributes:
        first_layer: the lowest layer it acts on.
    """

    first_layer: int

    def on(self, model: nn.Module) -> AbstractContextManager[None]: ...
    def memories(self) -> Sequence[MemoryLayer]: ...
    def parameter_groups(self) -> list[dict[str, Any]]: ...


# Methods of peft that take more than a prompt, or adapt other layers than linear ones.
UNFIT = ("LN_TUNING", "POLY", "TRAINABLE_TOKENS")


class PeftAdapter(WithoutNgrams):
    """An adapter by peft that changes layers in place. peft wraps the model; `unload` restores its layers."""

    def __init__(self, config: Any, state: dict[str, torch.Tensor] | None, first_layer: int) -> None:
        self._config, self._state, self._fresh, self.first_layer = config, state, state is None, first_layer
        self._peft: Any = None

    @classmethod
    def create(
        cls, model: nn.Module, config: UpperLayersConfig, encoder: PromptEncoder, pairs: Sequence[Pair]
    ) -> PeftAdapter:
        layers = config.layers(len(decoder_layers(model)))
        return cls(cls._own_config(model, config, layers), None, layers.start)

    @staticmethod
    def _own_config(model: nn.Module, config: Any, layers: range) -> Any:
        """peft's config of the method."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

        own = {  # only those whose parameters have a name of their own
            kind.value: method
            for kind, method in PEFT_TYPE_TO_CONFIG_MAPPING.items()
            if "target_modules" in method.__dataclass_fields__
            and getattr(PEFT_TYPE_TO_TUNER_MAPPING.get(kind), "prefix", None)
            and kind.value not in UNFIT
        }
        if not (method := own.get(config.method.upper())):
            raise UsageError(f"method is {config.method!r}; peft's methods that fit are {', '.join(sorted(own))}")
        options = {"target_modules": linear_layers(model), **config.options}
        if layers.start:
            if "layers_to_transform" not in method.__dataclass_fields__:
                raise UsageError(f"method {config.method} adapts all layers; remove first_layer")
            options["layers_to_transform"] = list(layers)
        try:
            return method(task_type="CAUSAL_LM", **options)
        except (TypeError, ValueError) as error:
            raise UsageError(f"options of method {config.method}: {error}") from error

    @classmethod
    def load(cls, model: nn.Module, config: UpperLayersConfig, encoder: PromptEncoder, folder: Path) -> PeftAdapter:
        import peft
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            stored: Any = peft.PeftConfig.from_pretrained(folder)
            state = load_file(folder / "adapter_model.safetensors")
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise UsageError(f"{folder}: this adapter cannot be read ({error}); {weights.ANEW}") from error
        stored.base_model_name_or_path = None  # peft would warn that the model's folder has another name
        return cls(stored, state, config.layers(len(decoder_layers(model))).start)

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        import peft

        try:
            self._peft = peft.get_peft_model(model, self._config, autocast_adapter_dtype=True)
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # such as a size that does not fit
            _restore(model)
            raise UsageError(f"{self._config.peft_type.value} does not fit this model: {error}") from error
        try:
            if self._state is not None:
                self._fill(peft.set_peft_model_state_dict)
            for parameter in self._own():  # cast a loaded adapter once, not at every product
                parameter.data = parameter.data.to(torch.float32 if self._fresh else model.dtype)
            # A fresh adapter is float32. Autocast runs its products in the backbone's dtype, so peft must not cast.
            products = low_precision(model.device, model.dtype) if self._fresh else nullcontext()
            with _without_casts(self._peft), products:
                yield
        finally:
            self._state = {k: v.clone() for k, v in peft.get_peft_model_state_dict(self._peft).items()}
            self._peft.unload()
            self._peft = None
            if hasattr(model, "peft_config"):
                del model.peft_config

    def _fill(self, setter: Callable[..., Any]) -> None:
        try:
            unknown = list(setter(self._peft, self._state).unexpected_keys)
        except RuntimeError as error:  # a size differs
            unknown = [" ".join(str(error).split())[:200]]
        if unknown:
            raise UsageError(f"this adapter belongs to another model ({unknown[0]}); name its model with --model")

    def _own(self) -> list[nn.Parameter]:
        """The method's parameters on the model, found by name, because peft freezes loaded ones."""
        mark = self._peft.base_model.prefix  # such as "lora_"
        return [p for name, p in self._peft.named_parameters() if mark in name]

    def memories(self) -> Sequence[MemoryLayer]:
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": self._own(), "tables": False}]

    def parameter_count(self) -> int:
        if self._peft is not None:
            return sum(parameter.numel() for parameter in self._own())
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        mark = PEFT_TYPE_TO_TUNER_MAPPING[self._config.peft_type].prefix  # VeRA also saves matrices that stay as drawn
        return sum(tensor.numel() for name, tensor in (self._state or {}).items() if mark in name)

    def save(self, folder: Path) -> None:
        self._peft.save_pretrained(folder)
        sort_config(folder)


def _without_casts(wrapped: Any) -> AbstractContextManager[None]:
    """Inside the context, peft's layers do not cast their inputs, if they would."""
    from peft.helpers import disable_input_dtype_casting
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
    if not all(hasattr(layer, "cast_input_dtype_enabled") for layer in layers):
        return nullcontext()
    found: AbstractContextManager[None] = disable_input_dtype_casting(wrapped)
    return found


def _restore(model: nn.Module) -> None:
    """Put back the layers that peft had replaced before it failed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(name, module.get_base_layer())


class LoraAdapter(PeftAdapter):
    """peft's LoRA on all linear layers of some decoder layers."""

    @staticmethod
    def _own_config(model: nn.Module, config: LoraConfig, layers: range) -> Any:
        import peft

        return peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=linear_layers(model),
            layers_to_transform=list(layers),
            task_type="CAUSAL_LM",
        )


def linear_layers(model: nn.Module) -> list[str]:
    """Last name parts of the linear layers in the decoder layers, sorted."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    named = decoder_layers(model).named_modules()
    return sorted({name.rpartition(".")[2] for name, module in named if isinstance(module, (nn.Linear, Conv1D))})


def sort_config(folder: Path) -> None:
    """Sort the saved peft config, because peft writes its set of modules in a different order in every process."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):  # not a pattern, or the name of a choice of peft's
        config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class EngramAdapter:
    """`EngramLayer`s on the inputs of the configured layers, and the index of the trained keys."""

    def __init__(self, addresses: Addresses, layers: dict[int, EngramLayer]) -> None:
        self.config, self.addresses, self.layers = addresses.config, addresses, layers
        self.ngram_size, self.first_layer = max(self.config.orders), min(self.config.layer_ids)
        self.acts_on_text, self.acts_on_template = self.config.acts_on_text, self.config.acts_on_template
        self._span: Spans = addresses.span

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
        router: str | None = None,
    ) -> EngramAdapter:
        """Load a memory; `damage` changes its rows for a control (see `addresses.damaged`), `router` adds routing."""
        config = placed(config, len(decoder_layers(model)))
        arrays = weights.load(folder, "engram", asdict(config))
        adapter = cls._build(model, Addresses.from_arrays(config, encoder, arrays))
        _fill(folder, {str(layer): memory for layer, memory in adapter.layers.items()}, arrays)
        for memory in adapter.layers.values():
            memory.fuse(model.dtype)
            if damage:
                memory.table.data.copy_(torch.from_numpy(damaged(memory.table.detach().cpu().numpy(), damage)))
        if router == "rules":
            adapter._span = adapter.addresses.routed_span(encoder)
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

    def span(self, prompt: Prompt) -> Span | None:
        return self._span(prompt)

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
        arrays = _arrays({str(layer): memory for layer, memory in self.layers.items()})
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
        _fill(folder, {str(layer): memory for layer, memory in adapter.layers.items()}, arrays)
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
        arrays = _arrays({str(layer): memory for layer, memory in self.layers.items()})
        weights.save(folder, "unigram", asdict(self.config), arrays)


def _arrays(modules: dict[str, nn.Module]) -> dict[str, Any]:
    state = nn.ModuleDict(modules).state_dict()
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def _fill(folder: Path, modules: dict[str, nn.Module], arrays: dict[str, Any]) -> None:
    try:
        nn.ModuleDict(modules).load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{folder}: this adapter does not fit the model or the variant ({reason}); {weights.ANEW}"
        ) from error
