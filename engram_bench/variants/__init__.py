"""Variants: what a run compares, one YAML file each. A user's own file works like a built-in one.

A file has ``name``, ``kind`` (none, prompted, retrieval, oracle, dictionary, lora, peft, engram, engram-lora or
unigram), ``about`` (one line for the report), ``control: true`` for a control, the fields of its kind's config, and
``training``. A variant that reuses another's adapter has ``name``, ``about``, ``adapter_of`` (the other variant) and
one change: ``damage``, which makes it a control, or ``router``, which decides for each prompt whether the memory is
consulted. With ``questions: bare`` or ``rich``, a variant trains on these questions, whatever the run's other variants
train on.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from engram_bench.data.training import KINDS as TRAININGS
from engram_bench.errors import UsageError
from engram_bench.variants import kinds
from engram_bench.variants.configs import Config, TrainingConfig
from engram_bench.variants.kinds import KINDS

BUILT_IN = (
    "baseline",
    "lora",
    "lora-bare",
    "lora-matched",
    "engram",
    "engram-lora",
    "engram-keyed",
    "engram-keyed-bare",
    "engram-routed",
    "engram-hearing",
    "engram-hearing-shuffled",
    "engram-hearing-zeroed",
    "engram-hearing-reader",
    "engram-hearing-reader-budget",
    "engram-unigram",
    "engram-shuffled",
    "engram-zeroed",
    "engram-one-slot",
    "engram-keyed-shuffled",
    "engram-keyed-zeroed",
    "engram-keyed-one-slot",
    "dictionary",
    "prompted",
    "retrieval",
    "retrieval-oracle",
)
# Single changes that lead from the paper's memory to the one that finds a trained key, and the paper's without a part.
LADDER = (
    "engram",
    "ladder-01-orders",
    "ladder-02-single",
    "ladder-03-content",
    "ladder-04-later",
    "ladder-05-key",
    "ladder-06-answer",
    "ladder-07-no-single",
    "ladder-08-no-convolution",
    "ladder-09-no-bias",
    "ladder-10-two-heads",
    "ladder-11-rate",
    "engram-keyed",
)
ABLATIONS = (
    "engram",
    "engram-no-gate",
    "engram-no-compression",
    "engram-no-convolution",
    "engram-early",
    "engram-middle",
    "engram-one-slot",
    "engram-shuffled",
    "engram-zeroed",
)
EXPECTED: dict[Any, str] = {  # words for the types of fields, for error messages
    int: "a whole number, 0 or more",
    float: "a number, 0 or more",
    int | float: "a number, 0 or more",
    bool: "true or false",
    str: "text",
    Sequence[int]: "a list of whole numbers, 0 or more",
    Sequence[int | float]: "a list of whole numbers or of shares, 0 or more",
}
# What stands for several variants in --engram-variants.
GROUPS = {"all": BUILT_IN, "ladder": LADDER, "ablations": ABLATIONS}


@dataclass(frozen=True)
class Variant:
    """A model variant: its kind, and the config and training of its adapter (None if it trains nothing)."""

    name: str
    kind: str
    about: str
    config: Config | None
    training: TrainingConfig | None
    control: bool = False  # exists for comparison only; makes no claim of its own
    adapter_of: str | None = None
    damage: str | None = None
    router: str | None = None
    questions: str = ""  # what it trains on, one of `data.training.KINDS`; "": what the run says
    own_epochs: bool = False  # from a user's file: profiles do not change its epochs

    def __post_init__(self) -> None:
        if self.questions and self.questions not in TRAININGS:
            raise ValueError(f"questions is {self.questions!r}; use {' or '.join(TRAININGS)}")

    @property
    def changes(self) -> dict[str, str]:
        """How the trained adapter is changed, see `Kind.changes`: "damage" or "router"."""
        return {name: value for name, value in (("damage", self.damage), ("router", self.router)) if value}


def select(names: str) -> list[Variant]:
    """Load the variants of ``--engram-variants``: comma-separated built-in names, `GROUPS` and YAML files.

    The baseline is always included and comes first.

    Raises:
        UsageError: a name is unknown or chosen twice, or a file is not a valid variant.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    chosen = [one for name in given for one in GROUPS.get(name, (name,))]
    loaded = [_load(name) for name in dict.fromkeys(["baseline", *chosen])]
    repeated = {v.name for v in loaded if sum(v.name == w.name for w in loaded) > 1}
    if repeated:
        raise UsageError(f"variant {min(repeated)!r} is chosen twice; give each file a different name")
    return loaded


def _load(name: str) -> Variant:
    if name in BUILT_IN or name in (*LADDER, *ABLATIONS):
        file = files(__name__).joinpath(*([] if name in BUILT_IN else ["ladder"]), f"{name}.yaml")
        return parse(file.read_text("utf-8"), f"{name}.yaml")
    if not name.endswith((".yaml", ".yml")):
        known = ", ".join([*BUILT_IN, *GROUPS])
        raise UsageError(f"unknown variant {name!r}; choose from {known} or give a YAML file")
    try:
        text = Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: cannot read this variant file: {error}; check the path") from error
    return parse(text, name, from_user=True)


def parse(text: str, place: str, from_user: bool = False) -> Variant:
    """Parse a variant from YAML text; `place` names it in errors. Profiles keep the epochs of a user's file."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.CSafeLoader)):
            raise UsageError(f"{place}: YAML aliases (*name) are not allowed; write the value out")
        data = yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # an invalid date, an over-long number, a list as a key
        raise UsageError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UsageError(f"{place}: nested too deeply; a variant has fields with at most one level below") from error
    if not isinstance(data, dict):
        raise UsageError(f"{place}: expected a mapping with the fields name, kind, about, ...")
    if "adapter_of" in data:
        return _reusing_adapter(data, place)
    kind = data.get("kind")
    if not isinstance(kind, str):
        raise UsageError(f"{place}: kind is {kind!r}; use one of {', '.join(KINDS)}")
    try:
        config_class = kinds.find(kind).config
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    own = {f.name for f in fields(config_class)} if config_class else set()
    outer = {"name", "kind", "about", "control", "questions", "training"}
    if unknown := [str(key) for key in data if key not in own | outer]:
        raise UsageError(f"{place}: unknown field {unknown[0]!r}; use one of {', '.join(sorted(own | outer))}")
    if not config_class and (given := next((field for field in ("training", "questions") if field in data), None)):
        raise UsageError(f"{place}: kind {kind} trains nothing; remove {given}")
    config = _build(config_class, {k: v for k, v in data.items() if k in own}, place) if config_class else None
    training = _build(TrainingConfig, data.get("training") or {}, f"{place}: training") if config else None
    rest = {k: v for k, v in data.items() if k in outer - {"training"}}
    variant: Variant = _build(Variant, {**rest, "config": config, "training": training}, place)
    return _with_valid_name(replace(variant, own_epochs=from_user), place)


def dump(variant: Variant) -> str:
    """YAML text that `parse` makes the same variant of."""
    if variant.adapter_of:
        data: dict[str, Any] = {"name": variant.name, "about": variant.about, "adapter_of": variant.adapter_of}
        data |= variant.changes
    else:
        outer = {name: getattr(variant, name) for name in ("name", "kind", "about", "control", "questions")}
        data = {name: value for name, value in outer.items() if value}
        data |= asdict(variant.config) if variant.config else {}
        data |= {"training": asdict(variant.training)} if variant.training else {}
    plain = json.loads(json.dumps(data))  # tuples as lists
    return yaml.dump(plain, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)


def _with_valid_name(variant: Variant, place: str) -> Variant:
    if not re.fullmatch(r"[\w.-]+", variant.name) or variant.name.startswith("."):
        raise UsageError(f"{place}: name is {variant.name!r}; use letters, digits, '_', '-' and '.'")
    return variant


def _reusing_adapter(data: dict[str, Any], place: str) -> Variant:
    """Build a variant that reuses another's adapter and changes it when loading."""
    if data["adapter_of"] not in BUILT_IN:
        raise UsageError(f"{place}: adapter_of is {data['adapter_of']!r}; name a built-in variant")
    base = _load(data["adapter_of"])
    changes = KINDS[base.kind].changes
    if not changes or base.adapter_of:
        raise UsageError(f"{place}: adapter_of is {data['adapter_of']!r}; use a memory with its own training")
    change = next((name for name in changes if name in data), "damage")
    if set(data) != {"name", "about", "adapter_of", change} or data[change] not in list(changes[change]):
        choices = " or ".join(f"{name}: {', '.join(values)}" for name, values in changes.items())
        raise UsageError(f"{place}: with adapter_of, give exactly name, about and one change ({choices})")
    changed = replace(base, name=str(data["name"]), about=str(data["about"]), adapter_of=base.name)
    return _with_valid_name(replace(changed, control=change == "damage", **{change: data[change]}), place)


def _build(cls: Any, data: dict[str, Any], place: str) -> Any:
    """Build a dataclass from `data`; raise a UsageError that names a missing, unknown or wrong field."""
    hints = typing.get_type_hints(cls)
    if not isinstance(data, dict):
        raise UsageError(f"{place}: expected a mapping, found {data!r}")
    for field in fields(cls):
        if field.name not in data:
            if field.default is MISSING and field.default_factory is MISSING:
                raise UsageError(f"{place}: field {field.name!r} is missing; add it")
        elif not _has_type(data[field.name], hints[field.name]):
            expected = EXPECTED.get(hints[field.name], hints[field.name])
            raise UsageError(f"{place}: {field.name} is {data[field.name]!r}, expected {expected}")
    if unknown := set(data) - {f.name for f in fields(cls)}:
        raise UsageError(f"{place}: unknown field {min(unknown)!r}; remove it")
    try:
        return cls(**data)
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from error


def _has_type(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_has_type(value, option) for option in hint.__args__)
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if typing.get_origin(hint) is not None:  # Sequence[int]
        return isinstance(value, list) and all(_has_type(v, typing.get_args(hint)[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and value >= 0
    return isinstance(value, hint)
