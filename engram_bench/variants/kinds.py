"""The kinds of variants: for each, in one place, its config and the adapter classes that create and load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engram_bench.variants.configs import Config, EngramConfig, LoraConfig, UnigramConfig


@dataclass(frozen=True)
class Kind:
    """A way to give a model facts.

    Attributes:
        name: `kind` in a variant's YAML file.
        config: dataclass of the fields of that file; its `__post_init__` raises ValueError on a value that makes no
            sense. None: nothing is trained.
        adapters: by framework ("torch", "mlx"), the adapter class as "module:Class", see `backends.base.AdapterClass`.
        changes: what a variant may do to a trained adapter of this kind, as arguments of `AdapterClass.load`: field of
            the YAML file -> its values.
        exact_lookup: the trained pairs are kept beside the untouched model and found by exact key.
        portable: whether an adapter trained in one framework loads in the others.
    """

    name: str
    config: type[Config] | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exact_lookup: bool = False
    portable: bool = False


KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Make a kind known to variant files; a later one of the same name replaces it."""
    KINDS[kind.name] = kind


def _in(name: str) -> dict[str, str]:
    return {framework: f"engram_bench.backends.{framework}.adapters:{name}" for framework in ("torch", "mlx")}


register(Kind("none"))
register(Kind("dictionary", exact_lookup=True))
register(Kind("retrieval", exact_lookup=True))
register(Kind("lora", LoraConfig, _in("LoraAdapter")))
register(
    Kind(
        "engram",
        EngramConfig,
        _in("EngramAdapter"),
        changes={
            "damage": ("shuffle", "zero"),  # give every n-gram another one's row; empty all rows
            "router": ("rules",),  # look up only where rules on the user's text hear a request, see memory.routing
        },
        portable=True,
    )
)
register(Kind("unigram", UnigramConfig, _in("UnigramAdapter"), portable=True))
