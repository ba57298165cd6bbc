"""What is measured: one YAML file a variant. Data, not code; a user's own file works the same.

A file is ``name``, ``kind`` (none, dictionary, retrieval, lora, engram or unigram), ``about`` (a line for the report),
``control: true`` where it is one, the fields of its kind's config, and ``training``. A variant that takes another's
adapter is ``name``, ``about``, ``adapter_of`` (that other one) and what is done to it: ``damage``, which makes it a
control, or a ``router`` before it.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from engram_bench.errors import UsageError

BUILT_IN = (
    "baseline",
    "lora",
    "lora-matched",
    "engram",
    "engram-routed",
    "engram-unigram",
    "engram-shuffled",
    "engram-zeroed",
    "engram-one-slot",
    "dictionary",
    "retrieval",
)
EVERY = "all"  # stands for all of them in --engram-variants


@dataclass(frozen=True)
class TrainingConfig:
    """How an adapter is trained: AdamW, linear warm-up over 5% of the steps, linear decay to zero."""

    epochs: int
    batch_size: int
    lr: float
    table_lr: float = 0.0  # for memory tables; each row is touched rarely, so it has to move far when it is
    beta2: float = 0.99
    clip: float = 0.0  # gradient norm; 0: none


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation of every linear layer but the head (arXiv:2106.09685), by peft or mlx-lm."""

    rank: int
    alpha: float
    four_bit: bool = False  # train against a backbone of 4 bits, which Unsloth alone can; the whole one answers


@dataclass(frozen=True)
class EngramConfig:
    """Shape of an n-gram memory; every field has the paper's meaning (section 2) unless said otherwise."""

    layers: Sequence[int]
    orders: Sequence[int]  # beyond the paper: any n-gram lengths, not only 2..N
    heads: int
    rows: int  # least rows of one table; there is a table for each layer, order and head. 1: exactly one
    width: int  # numbers in a row
    order_dropout: float = 0.0  # share of (token, order) pairs a training step leaves out; beyond the paper
    span: str = "key"  # what the memory looks at: "text", the user's; "key", a trained key in it, beyond the paper
    hash_seed: int = 0

    @property
    def acts_on_text(self) -> bool:
        """Whether it acts on each token it looks at, as the paper's, and not just where the answer is made."""
        return self.span == "text"


@dataclass(frozen=True)
class UnigramConfig:
    """Shape of the published single-token memory; it sits on every layer."""

    slots: int


COUNTS = ("epochs", "batch_size", "rank", "heads", "rows", "width", "slots")
CHANGES = {  # what a variant does to the n-gram memory of another
    "damage": ("shuffle", "zero"),  # give every n-gram another one's row; empty all rows
    "router": ("rules",),  # look only where rules on the user's text say so, see memory.routing
}
BESIDE = ("dictionary", "retrieval")  # kinds that keep the trained pairs beside the untouched model, see `beside`
KINDS = {"none": None, **dict.fromkeys(BESIDE), "lora": LoraConfig, "engram": EngramConfig, "unigram": UnigramConfig}


@dataclass(frozen=True)
class Variant:
    """A model variant: a kind of adapter, its config and its training; the baseline has none of them."""

    name: str
    kind: str
    about: str
    config: LoraConfig | EngramConfig | UnigramConfig | None
    training: TrainingConfig | None
    control: bool = False  # whether it is there to be compared with, and claims nothing itself
    adapter_of: str | None = None
    damage: str | None = None
    router: str | None = None
    own_epochs: bool = False  # from a user's file; no profile changes them


def select(names: str) -> list[Variant]:
    """Variants from ``--engram-variants``: built-in names and YAML files, separated by commas, or all; baseline first.

    Raises:
        UsageError: an unknown name, or a file that is not a variant.
    """
    chosen = list(BUILT_IN) if names.strip() == EVERY else [name.strip() for name in names.split(",") if name.strip()]
    loaded = [_load(name) for name in dict.fromkeys(["baseline", *chosen])]
    repeated = {v.name for v in loaded if sum(v.name == w.name for w in loaded) > 1}
    if repeated:
        raise UsageError(f"variant {min(repeated)!r} is chosen twice; give each file a name of its own")
    return loaded


def _load(name: str) -> Variant:
    if name in BUILT_IN:
        return parse(files(__name__).joinpath(f"{name}.yaml").read_text("utf-8"), f"{name}.yaml")
    if not name.endswith((".yaml", ".yml")):
        raise UsageError(f"unknown variant {name!r}; choose from {', '.join(BUILT_IN)} or give a YAML file")
    try:
        text = Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: cannot read this variant file: {error}") from error
    return parse(text, name, from_user=True)


def parse(text: str, place: str, from_user: bool = False) -> Variant:
    """A variant from YAML text; `place` names it in errors. Epochs in a user's file stand in every profile."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.CSafeLoader)):
            raise UsageError(f"{place}: YAML aliases (*name) are not allowed; write the value out")
        data = yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date that is none, a number too long, a list for a key
        raise UsageError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UsageError(f"{place}: nested too deeply; a variant has fields and one level below") from error
    if not isinstance(data, dict):
        raise UsageError(f"{place}: expected fields (name, kind, about, ...), found something else")
    if "adapter_of" in data:
        return _changed(data, place)
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError(f"{place}: kind is {kind!r}; use one of {', '.join(KINDS)}")
    config_class = KINDS[kind]
    own = {f.name for f in fields(config_class)} if config_class else set()
    outer = {"name", "kind", "about", "control", "training"}
    if unknown := [str(key) for key in data if key not in own | outer]:
        raise UsageError(f"{place}: unknown field {unknown[0]!r}; known are {', '.join(sorted(own | outer))}")
    if "training" in data and not config_class:
        raise UsageError(f"{place}: a variant of kind {kind} trains nothing; remove training")
    config = _build(config_class, {k: v for k, v in data.items() if k in own}, place) if config_class else None
    if isinstance(config, EngramConfig):
        if not (config.layers and config.orders):
            raise UsageError(f"{place}: layers and orders must each hold at least one number")
        if sorted(set(config.orders)) != list(config.orders) or config.orders[0] < 1:
            raise UsageError(f"{place}: orders is {config.orders}; n-gram lengths ascend from 1 or more")
        if config.order_dropout >= 1:
            raise UsageError(f"{place}: order_dropout is {config.order_dropout}; it is a share below 1")
        if config.span not in ("text", "key"):
            raise UsageError(f"{place}: span is {config.span!r}; use text or key")
    training = _build(TrainingConfig, data.get("training") or {}, f"{place}: training") if config else None
    rest = {k: v for k, v in data.items() if k in outer - {"training"}}
    variant: Variant = _build(Variant, {**rest, "config": config, "training": training}, place)
    return _named(replace(variant, own_epochs=from_user), place)


def _named(variant: Variant, place: str) -> Variant:
    if not re.fullmatch(r"[\w.-]+", variant.name) or variant.name.startswith("."):
        raise UsageError(f"{place}: name is {variant.name!r}; use letters, digits, '_', '-' and '.'")
    return variant


def _changed(data: dict[str, Any], place: str) -> Variant:
    """The variant whose adapter is taken, renamed and marked with what is done to it."""
    change = next((name for name in CHANGES if name in data), "damage")
    if set(data) != {"name", "about", "adapter_of", change} or data[change] not in list(CHANGES[change]):
        choices = " or ".join(f"{name}: {', '.join(values)}" for name, values in CHANGES.items())
        raise UsageError(f"{place}: with adapter_of there are name, about and one change ({choices}), no more")
    if data["adapter_of"] not in BUILT_IN:
        raise UsageError(f"{place}: adapter_of is {data['adapter_of']!r}; name a built-in variant")
    base = _load(data["adapter_of"])
    if not isinstance(base.config, EngramConfig) or base.adapter_of:
        raise UsageError(f"{place}: adapter_of is {data['adapter_of']!r}; only an n-gram memory can be changed")
    changed = replace(base, name=str(data["name"]), about=str(data["about"]), adapter_of=base.name)
    return _named(replace(changed, control=change == "damage", **{change: data[change]}), place)


def _build(cls: Any, data: dict[str, Any], place: str) -> Any:
    """A dataclass from fields of the right types, or a UsageError that names the field."""
    hints = typing.get_type_hints(cls)
    if not isinstance(data, dict):
        raise UsageError(f"{place}: expected fields, found {data!r}")
    for field in fields(cls):
        if field.name not in data:
            if field.default is MISSING:
                raise UsageError(f"{place}: field {field.name!r} is missing; add it")
        elif not _fits(data[field.name], hints[field.name]):
            raise UsageError(f"{place}: {field.name} is {data[field.name]!r}, expected {hints[field.name]}")
        elif field.name in COUNTS and data[field.name] < 1:
            raise UsageError(f"{place}: {field.name} is {data[field.name]!r}, expected 1 or more")
    if unknown := set(data) - {f.name for f in fields(cls)}:
        raise UsageError(f"{place}: unknown field {min(unknown)!r}")
    return cls(**data)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in hint.__args__)
    if typing.get_origin(hint) is not None:  # Sequence[int]
        return isinstance(value, list) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and value >= 0
    return isinstance(value, hint)
