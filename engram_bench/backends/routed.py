"""Loads adapters, and puts a router before a memory: it then reads only prompts that ask, see `memory.routing`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from engram_bench.backends.base import Adapter, Backend, adapter_class
from engram_bench.data import prompt_sets
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.addresses import Confidence, placed
from engram_bench.memory.routing import FILE, Router, confidence
from engram_bench.prompts import Prompt
from engram_bench.variants import Variant
from engram_bench.variants.configs import EngramConfig


class Reached(Exception):  # noqa: N818 (a signal, not an error)
    """Ends a forward pass of `Backend.hidden_states` at the input of a layer, which it holds."""


class Routable(Protocol):
    """An adapter that a router can stand before."""

    def route(self, confidence: Confidence) -> None: ...


def first_layer(variant: Variant, depth: int) -> int:
    """The lowest layer of a routed memory. What the router sees is the input of this layer, which no memory changes."""
    assert isinstance(variant.config, EngramConfig), f"{variant.name} has no layers with a memory"
    return min(placed(variant.config, depth).layer_ids)


def fit(backend: Backend, variant: Variant, folder: Path) -> None:
    """Fit the router of a variant on the development prompts, and save it to the adapter's folder."""
    layer = first_layer(variant, backend.depth)
    asking, others = (
        backend.hidden_states([backend.encoder.prompt(text) for text in texts], layer)
        for texts in prompt_sets.routing_development()
    )
    Router.fitted(asking, others).save(folder)


def loaded(backend: Backend, model: Any, variant: Variant, folder: Path) -> Adapter:
    """Load a variant's adapter into a framework's model, and put the variant's router before it, if it has one.

    Raises:
        UsageError: the adapter cannot be loaded, or the folder holds no router for this model.
    """
    damage = {"damage": variant.damage} if variant.damage else {}
    made_by = adapter_class(variant, backend.name)
    adapter = made_by.load(model, variant.config, backend.encoder, folder, **damage)
    if variant.router:
        cast(Routable, adapter).route(rules if variant.router == "rules" else _learned(backend, variant, folder))
    return adapter


def rules(prompts: Sequence[Prompt]) -> list[float]:
    """The rules' confidence that prompts ask for something stored."""
    return [confidence(prompt.text) for prompt in prompts]


def _learned(backend: Backend, variant: Variant, folder: Path) -> Confidence:
    layer, router = first_layer(variant, backend.depth), Router.load(folder)
    width = backend.hidden_states([backend.encoder.prompt("")], layer).shape[1]
    if router is None or router.weight.shape != (width,):
        raise UsageError(f"{folder / FILE}: no router for this model here; {weights.ANEW}")
    known: dict[Prompt, float] = {}

    def learned(prompts: Sequence[Prompt]) -> list[float]:
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]:
            known.update(zip(new, router.confidence(backend.hidden_states(new, layer)).tolist(), strict=True))
        return [known[prompt] for prompt in prompts]

    return learned
