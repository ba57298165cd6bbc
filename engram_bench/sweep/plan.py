"""The runs of a sweep: what a file says of one becomes options of the suites and changed variants, all checked."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engram_bench import variants
from engram_bench.data.nodes import Nodes
from engram_bench.errors import UsageError
from engram_bench.options import OPTIONS, PROFILES, Settings, integers, settle
from engram_bench.run import estimate
from engram_bench.variants import Variant

OWN = ("report", "resume", "gate", "gate-fail", "gate-update")  # options that a sweep sets, or that need another run
FREE = {option.name: option for option in OPTIONS if option.name not in OWN}
PLACES = ("patterns", "model")  # options whose value may be a path
NAME, SEEDS, VARIANTS = "name", "seeds", "variants"
APART = (SEEDS, VARIANTS)
LONGEST_FOLDER = 80  # characters
FLOAT = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+")  # 1e-3, which YAML 1.1 reads as text


class Value(NamedTuple):
    """What a file says of an option or a field, and on which line."""

    content: Any
    place: str

    @property
    def text(self) -> str:
        """As an option's value: a list with commas."""
        every = self.content if isinstance(self.content, list) else [self.content]
        return ",".join(_written(one) for one in every)


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        name: unique in the sweep.
        axes: what tells it from the others, by option or field, as text.
        options: values of the suites' options by name.
        chosen: its variants, changed as the file says.
        changed: YAML of the variants that the sweep's file changes, or that have a file of their own; by name.
        sha256: hash of what decides its result.
    """

    name: str
    axes: Mapping[str, str]
    options: Mapping[str, str]
    chosen: tuple[Variant, ...]
    changed: Mapping[str, str]
    sha256: str

    @property
    def folder(self) -> str:
        """Name of its folder."""
        safe = re.sub(r"[^\w.=-]+", "_", self.name)  # a comma would end the name of a variant's file
        if safe == self.name and len(safe) <= LONGEST_FOLDER and not safe.startswith("."):
            return safe
        return f"{safe[: LONGEST_FOLDER - 9].lstrip('.')}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    def flags(self, folder: Path) -> list[str]:
        """Options for pytest; writes the changed variants' files into a folder."""
        files = {}
        for name, text in self.changed.items():
            files[name] = folder / f"{name}.yaml"
            files[name].write_text(text, encoding="utf-8")
        kept = [name for name in _names(self.options[VARIANTS]) if name not in files]
        given = {**self.options, VARIANTS: ",".join([*kept, *map(str, files.values())])}
        flags = [(name, value) for name, value in given.items() if not FREE[name].flag]
        on = [name for name, value in given.items() if FREE[name].flag and value.lower() in ("1", "true", "yes", "on")]
        return [*(f"--engram-{name}={value}" for name, value in flags), *(f"--engram-{name}" for name in on)]


class Maker:
    """Makes runs of changes to what all share, and checks them.

    Args:
        file: the sweep's file.
        base: what all runs share.
        problems: gets what is wrong, a line each.
    """

    def __init__(self, file: Path, base: Mapping[str, Value], problems: list[str]) -> None:
        self._file, self._base, self.problems = file, base, problems
        self._found: set[str] = set()  # fields that change a variant of some run
        self._settled: dict[tuple[tuple[str, str], ...], tuple[Settings, str]] = {}
        self._select = cache(variants.select)
        variables = {name: os.environ.get(option.variable, "") for name, option in FREE.items()}
        self._environment = {name: text for name, text in variables.items() if text}  # as the suites would take them

    def made(self, changes: Mapping[str, Value]) -> Run | None:
        """One run, by what tells it from the others; None if it cannot be, which is reported."""
        count = len(self.problems)
        given = {**self._base, **{name: value for name, value in changes.items() if name != NAME}}
        options = {name: self._option(name, value) for name, value in given.items() if name in FREE}
        options = {**self._environment, **options}
        if (found := self._settings(options, given)) is None:
            return None
        settings, data = found
        named = options.get(VARIANTS, PROFILES[settings.profile].variants)
        try:
            chosen = {variant.name: variant for variant in self._select(named)}
            own = {self._select(file)[-1].name: file for file in _names(named) if _is_file(file)}
            changed = {name: Path(file).read_text("utf-8") for name, file in own.items()}
        except UsageError as error:
            self._problem(given, VARIANTS, str(error))
            return None
        files = {file: name for name, file in own.items()}
        options[VARIANTS] = ",".join(files.get(name, name) for name in _names(named))
        fields = {name: value for name, value in given.items() if name not in FREE}
        used = self._change(chosen, changed, fields)
        self._found |= used
        if len(self.problems) > count:
            return None
        axes = {name: value.text for name, value in changes.items() if name in FREE or name in used}
        label = changes[NAME].text if NAME in changes else " ".join(f"{name}={text}" for name, text in axes.items())
        told = {name: text for name, text in options.items() if name != "patterns"}  # `data` is their content
        content = [data, *sorted(told.items()), *sorted(changed.items())]
        digest = hashlib.sha256(repr(content).encode()).hexdigest()
        return Run(label or "base", axes, options, tuple(chosen.values()), changed, digest)

    def _change(self, chosen: dict[str, Variant], changed: dict[str, str], fields: Mapping[str, Value]) -> set[str]:
        """Change fields of a run's variants in `chosen`, and put their YAML into `changed`; returns what was used."""
        of: dict[str, dict[str, Value]] = {}
        for path, value in fields.items():
            name = next((name for name in sorted(chosen, key=len, reverse=True) if path.startswith(f"{name}.")), None)
            if name is not None:
                of.setdefault(name, {})[path.removeprefix(f"{name}.")] = value
        for name, values_of in of.items():
            try:
                chosen[name], changed[name] = with_fields(chosen[name], values_of)
            except UsageError as error:
                self.problems.append(str(error))
        return {f"{name}.{path}" for name, values_of in of.items() for path in values_of}

    def base_profile(self) -> str:
        """The profile that all runs share; "" if the file names none."""
        return self._base["profile"].text if "profile" in self._base else ""

    def check_names(self, every: Sequence[Mapping[str, Value]]) -> None:
        """Report fields that change no variant of any run."""
        told: set[str] = set()
        for changes in [self._base, *every]:
            for name, value in changes.items():
                if name not in FREE and name != NAME and name not in self._found | told and not self.problems:
                    told.add(name)
                    self.problems.append(f"{value.place}: {name!r}: no run has such a variant; name it in variants")

    def _option(self, name: str, value: Value) -> str:
        """An option's value; a path is one beside the file, if there is one."""
        if name == VARIANTS:
            every = [one for part in _names(value.text) for one in variants.GROUPS.get(part, (part,))]
            return ",".join(self._beside(part) if _is_file(part) else part for part in every)
        return self._beside(value.text) if name in PLACES else value.text

    def _beside(self, text: str) -> str:
        """The path beside the sweep's file, or else as it is."""
        beside = self._file.parent / text
        try:
            return str(beside.resolve()) if text and beside.exists() else text
        except OSError:  # no path, such as a name that is too long
            return text

    def _settings(self, options: Mapping[str, str], given: Mapping[str, Value]) -> tuple[Settings, str] | None:
        """The suites' own check of their options, and the hash of the data; None if they refuse one, which is reported.

        Variants are checked apart, and so are seeds, which do not change the data.
        """
        key = tuple(sorted((name, text) for name, text in options.items() if name not in APART))
        try:
            seeds = integers("--engram-seeds", options.get(SEEDS, "0"))
            if key not in self._settled:
                settings = settle({FREE[name].dest: text for name, text in key}, lambda _: "")
                self._settled[key] = settings, settings.patterns.sha256
        except UsageError as error:
            named = re.match(r"--engram-([\w-]+)", str(error))
            self._problem(given, named[1] if named else "patterns", str(error).removeprefix("--engram-"))
            return None
        settings, sha256 = self._settled[key]
        return replace(settings, seeds=seeds), sha256

    def settings(self, run: Run) -> Settings:
        """The options of a run as the suites understand them; its variants are `Run.chosen`."""
        found = self._settings(run.options, {})
        assert found is not None, "a run's options have been checked"
        return found[0]

    def _problem(self, given: Mapping[str, Value], name: str, reason: str) -> None:
        place = given[name].place if name in given else str(self._file)
        if (line := f"{place}: {reason}") not in self.problems:
            self.problems.append(line)


def with_fields(variant: Variant, fields: Mapping[str, Value]) -> tuple[Variant, str]:
    """A variant with some fields changed, ``rank`` or ``training.lr``, and its YAML.

    Raises:
        UsageError: a path leads through a field that has none below it, or the variant is not valid; the message names
            the line of the first field that is wrong by itself, or of the last one.
    """
    data = yaml.load(variants.dump(variant), Loader=yaml.CSafeLoader)
    for path, value in fields.items():
        *outer, last = path.split(".")
        inner = data
        for name in outer:
            inner = inner.setdefault(name, {}) if isinstance(inner, dict) else None
            if not isinstance(inner, dict):
                raise UsageError(f"{value.place}: {name!r} of {variant.name} has no fields; write VARIANT.FIELD")
        inner[last] = value.content
    text = yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    try:
        return variants.parse(text, list(fields.values())[-1].place, from_user=True), text
    except UsageError:
        if len(fields) > 1:
            for path, value in fields.items():
                with_fields(variant, {path: value})
        raise


def values(nodes: Nodes, node: yaml.Node, name: str, *more: str) -> dict[str, Value]:
    """The options and fields of a mapping by name."""
    return {
        key: _value(nodes, entry) for key, entry in nodes.mapping(node, name).items() if _known(nodes, key, entry, more)
    }


def axes(nodes: Nodes, node: yaml.Node) -> dict[str, list[Value]]:
    """The values of each axis of a grid."""
    found = {}
    for key, entry in nodes.mapping(node, "grid").items():
        if _known(nodes, key, entry):
            found[key] = [_value(nodes, one) for one in nodes.entries(entry, key)]
            texts = [value.text for value in found[key]]
            for value, text in zip(found[key], texts, strict=True):
                if texts.count(text) > 1:
                    nodes.problems.append(f"{value.place}: {text!r} of {key} is given twice; keep one")
                    break
    return found


def _known(nodes: Nodes, name: str, node: yaml.Node, more: Sequence[str] = ()) -> bool:
    if name in OWN:
        nodes.problem(node, f"{name!r} cannot be set in a sweep: each of its runs has a folder of its own, and no gate")
    elif name not in FREE and name not in more and "." not in name:
        every = ", ".join([*FREE, *more])
        nodes.problem(node, f"unknown option {name!r}; use one of {every}, or VARIANT.FIELD such as lora.training.lr")
    else:
        return True
    return False


def _value(nodes: Nodes, node: yaml.Node) -> Value:
    try:
        return Value(plain(node), nodes.place(node))
    except (yaml.YAMLError, ValueError) as error:
        nodes.problem(node, f"cannot be read as a value ({' '.join(str(error).split())}); quote it")
        return Value("", nodes.place(node))


def plain(node: yaml.Node) -> Any:
    """A node's content: text, numbers, lists, mappings; a number in any notation is one."""
    if isinstance(node, yaml.SequenceNode):
        return [plain(one) for one in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): plain(value) for key, value in node.value}
    if isinstance(node, yaml.ScalarNode) and not node.style and FLOAT.fullmatch(node.value):
        return float(node.value)
    return yaml.SafeLoader("").construct_object(node)


def _written(content: Any) -> str:
    return str(content).lower() if isinstance(content, bool) else str(content)


def _is_file(variant: str) -> bool:
    return variant.endswith((".yaml", ".yml"))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def seconds(settings: Settings, run: Run) -> float:
    """Rough time of a run on a CPU, see `run.estimate`."""
    count = sum(len(category.items) for category in settings.patterns.categories.values())
    own = [variant for variant in run.chosen if not variant.adapter_of]
    kinds = [estimate.kind_of(variant) for variant in own]
    return estimate.own_facts(count, kinds * len(settings.seeds))
