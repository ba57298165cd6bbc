"""The registry of variant kinds: each kind's config class, the classes of its adapters, or how it asks the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engram_bench.variants.configs import Config, EngramConfig, EngramLoraConfig, LoraConfig, UnigramConfig


@dataclass(frozen=True)
class Kind:
    """A way to give facts to a model.

    Attributes:
        name: the value of `kind` in a variant's YAML file.
        config: dataclass of the kind's own fields in that file; its `__post_init__` raises ValueError on an invalid
            value. None: nothing is trained.
        adapters: framework ("torch", "mlx") -> adapter class as "module:Class", see `backends.base.AdapterClass`.
        changes: how a variant may change a trained adapter of this kind: field of the YAML file -> allowed values.
            `AdapterClass.load` receives them as keyword arguments.
        reader: for a kind without config, how the untouched model is asked: a function as "module:function", see
            `run.readers.Reader`. Empty: by the question alone.
        portable: whether an adapter trained in one framework loads in the others.
        keeps_facts: whether the reader looks facts up when asked, so that all of them are kept as text.
    """

    name: str
    config: type[Config] | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reader: str = ""
    portable: bool = False
    keeps_facts: bool = False


KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Make a kind available to variant files; it replaces an earlier kind of the same name."""
    KINDS[kind.name] = kind


def _built_in_adapters(name: str) -> dict[str, str]:
    return {framework: f"engram_bench.backends.{framework}.adapters:{name}" for framework in ("torch", "mlx")}


register(Kind("none"))
register(Kind("prompted", reader="engram_bench.run.readers:prompted"))
for _name in ("dictionary", "retrieval", "oracle"):
    register(Kind(_name, reader=f"engram_bench.run.readers:{_name}", keeps_facts=True))
register(Kind("lora", LoraConfig, _built_in_adapters("LoraAdapter")))
register(
    Kind(
        "engram",
        EngramConfig,
        _built_in_adapters("EngramAdapter"),
        changes={
            "damage": ("shuffle", "zero"),  # shuffle: give each n-gram another's row; zero: set all rows to zero
            "router": ("rules",),  # consult the memory only if rules find a request, see memory.routing
        },
        portable=True,
    )
)
register(Kind("engram-lora", EngramLoraConfig, _built_in_adapters("EngramLoraAdapter")))
register(Kind("unigram", UnigramConfig, _built_in_adapters("UnigramAdapter"), portable=True))
