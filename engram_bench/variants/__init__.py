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
from dataclasses import MISSING, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from engram_bench.errors import UsageError
from engram_bench.variants.configs import Config, TrainingConfig
from engram_bench.variants.kinds import KINDS

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
class Variant:
    """A model variant: a kind of adapter, its config and its training; the baseline has none of them."""

    name: str
    kind: str
    about: str
    config: Config | None
    training: TrainingConfig | None
    control: bool = False  # whether it is there to be compared with, and claims nothing itself
    adapter_of: str | None = None
    damage: str | None = None
    router: str | None = None
    own_epochs: bool = False  # from a user's file; no profile changes them

    @property
    def changes(self) -> dict[str, str]:
        """What is done to the trained adapter when it is loaded, see `Kind.changes`."""
        return {name: value for name, value in (("damage", self.damage), ("router", self.router)) if value}


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
    config_class = KINDS[kind].config
    own = {f.name for f in fields(config_class)} if config_class else set()
    outer = {"name", "kind", "about", "control", "training"}
    if unknown := [str(key) for key in data if key not in own | outer]:
        raise UsageError(f"{place}: unknown field {unknown[0]!r}; known are {', '.join(sorted(own | outer))}")
    if "training" in data and not config_class:
        raise UsageError(f"{place}: a variant of kind {kind} trains nothing; remove training")
    config = _build(config_class, {k: v for k, v in data.items() if k in own}, place) if config_class else None
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
    if data["adapter_of"] not in BUILT_IN:
        raise UsageError(f"{place}: adapter_of is {data['adapter_of']!r}; name a built-in variant")
    base = _load(data["adapter_of"])
    changes = KINDS[base.kind].changes
    if not changes or base.adapter_of:
        raise UsageError(f"{place}: adapter_of is {data['adapter_of']!r}; only an n-gram memory can be changed")
    change = next((name for name in changes if name in data), "damage")
    if set(data) != {"name", "about", "adapter_of", change} or data[change] not in list(changes[change]):
        choices = " or ".join(f"{name}: {', '.join(values)}" for name, values in changes.items())
        raise UsageError(f"{place}: with adapter_of there are name, about and one change ({choices}), no more")
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
    if unknown := set(data) - {f.name for f in fields(cls)}:
        raise UsageError(f"{place}: unknown field {min(unknown)!r}")
    try:
        return cls(**data)
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in hint.__args__)
    if typing.get_origin(hint) is not None:  # Sequence[int]
        return isinstance(value, list) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and value >= 0
    return isinstance(value, hint)
