"""LoRA, and other methods of the peft library, as adapters of the torch backend.

peft replaces layers of the model. An adapter stays unmerged, so taking it off restores the model bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engram_bench.backends.base import WithoutNgrams
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.torch import MemoryLayer, decoder_layers, low_precision
from engram_bench.prompts import Pair, PromptEncoder
from engram_bench.variants.configs import LoraConfig, UpperLayersConfig

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
