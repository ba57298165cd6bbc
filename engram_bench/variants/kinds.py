"""The registry of variant kinds: each kind's config class, the classes of its adapters, or how it asks the model.

Other packages bring kinds of their own by the entry point `GROUP`, whose value is a `Kind`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points

from engram_bench.data.ways import UNTOUCHED, WAYS
from engram_bench.errors import UsageError
from engram_bench.variants.configs import (
    Config,
    EngramConfig,
    EngramLoraConfig,
    HearingConfig,
    LoraConfig,
    PeftMethodConfig,
    UnigramConfig,
)


@dataclass(frozen=True)
class Kind:
    """A way to give facts to a model.

    Attributes:
        name: the value of `kind` in a variant's YAML file.
        config: dataclass of the kind's own fields in that file; its `__post_init__` raises ValueError on an invalid
            value. None: nothing is trained.
        adapters: framework ("torch", "mlx") -> adapter class as "module:Class", see `backends.base.AdapterClass`.
        changes: how a variant may change a trained adapter of this kind: "damage" or "router" -> allowed values.
            `AdapterClass.load` receives the damage.
        reader: for a kind without config, how the untouched model is asked: a function as "module:function", see
            `run.readers.Reader`. Empty: by the question alone.
        portable: whether an adapter trained in one framework loads in the others.
        keeps_facts: whether the reader looks facts up when asked, so that all of them are kept as text.
        unasked: ways of asking in which it is not asked.
        package: name and version of the package that brings it; empty: this one.
    """

    name: str
    config: type[Config] | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reader: str = ""
    portable: bool = False
    keeps_facts: bool = False
    unasked: Sequence[str] = ()
    package: str = ""


GROUP = "engram_bench.kinds"
KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Make a kind available to variant files; it replaces an earlier kind of the same name."""
    KINDS[kind.name] = kind


def find(name: str) -> Kind:
    """The kind of a name, also of another package.

    Raises:
        UsageError: there is no such kind, or the package that brings it fails; the error names it.
    """
    if name in KINDS:
        return KINDS[name]
    others = {point.name: point for point in entry_points(group=GROUP)}
    if name not in others:
        raise UsageError(f"kind is {name!r}; use one of {', '.join([*KINDS, *others])}")
    point = others[name]
    package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    try:
        found = point.load()
        if not isinstance(found, Kind) or found.name != name:
            raise TypeError(f"{point.value} is no Kind of this name")
    except Exception as error:  # whatever its module raises
        raise UsageError(f"kind {name} of the package {package} fails: {type(error).__name__}: {error}") from error
    register(replace(found, package=package))
    return KINDS[name]


def _built_in_adapters(name: str) -> dict[str, str]:
    return {framework: f"engram_bench.backends.{framework}.adapters:{name}" for framework in ("torch", "mlx")}


register(Kind("none"))
# Solved examples change the form of every answer, so no answer would be the untouched model's to the letter.
_LEFT_ALONE = tuple(way.name for way in WAYS.values() if way.right == UNTOUCHED)
register(Kind("prompted", reader="engram_bench.run.readers:prompted", unasked=_LEFT_ALONE))
register(Kind("dictionary", reader="engram_bench.run.readers:dictionary", keeps_facts=True))
for _name in ("retrieval", "oracle"):
    register(Kind(_name, reader=f"engram_bench.run.readers:{_name}", keeps_facts=True, unasked=_LEFT_ALONE))
_PEFT = "engram_bench.backends.torch.peft_methods"
register(Kind("lora", LoraConfig, {**_built_in_adapters("LoraAdapter"), "torch": f"{_PEFT}:LoraAdapter"}))
register(Kind("peft", PeftMethodConfig, {"torch": f"{_PEFT}:PeftAdapter"}))
register(
    Kind(
        "engram",
        EngramConfig,
        _built_in_adapters("EngramAdapter"),
        changes={
            "damage": ("shuffle", "zero"),  # shuffle: give each n-gram another's row; zero: set all rows to zero
            "router": ("learned", "rules"),  # consult the memory only if a router finds a request, see memory.routing
        },
        portable=True,
    )
)
register(
    Kind(
        "engram-hearing",
        HearingConfig,
        {framework: f"engram_bench.backends.{framework}.hearing:HearingAdapter" for framework in ("torch", "mlx")},
        changes={"damage": ("shuffle", "zero")},
        portable=True,
    )
)
register(Kind("engram-lora", EngramLoraConfig, _built_in_adapters("EngramLoraAdapter")))
register(Kind("unigram", UnigramConfig, _built_in_adapters("UnigramAdapter"), portable=True))
