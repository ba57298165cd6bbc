"""Tuning: recipes chosen one after the other by the results of those before, on development questions alone.

Optuna proposes each variant's next recipe. Its samplers draw from fixed seeds, so the same results lead to the same
recipes. So a search goes on by going through its trials again: those that are done cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from engram_bench.data.nodes import Nodes
from engram_bench.errors import UsageError
from engram_bench.report.text import Section, Show
from engram_bench.sweep.execute import DONE, FAILED, RUNS, state
from engram_bench.sweep.plan import NAME, Maker, Run, Value, plain
from engram_bench.sweep.results import LESS, MEASURES, Row, rows, shown

DEVELOPMENT = "development"
SAMPLERS = ("tpe", "random")
MEASURED = tuple(measure for measure in MEASURES if measure != "kl_with_keys")  # by the development profile
OBJECTIVES = tuple(m for m in ("generality", *LESS) if m in MEASURED)  # the rest asks in others' sentences, too
CONSTRAINT = re.compile(r"(\w+) *(<=|>=) *([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)")
FIELDS = ("trials", "space", "objective", "constraint", "sampler", "seed", "parallel")
MISSING = 'a search needs Optuna; install it with pip install "engram-bench[sweep]"'

Make = Callable[[Sequence[Run]], object]  # makes runs, and leaves their reports in their folders


@dataclass(frozen=True)
class Constraint:
    """What a recipe must keep: a measure at most or at least so much."""

    measure: str
    sign: str
    limit: float

    def excess(self, value: float) -> float:
        """How far a value is beyond the limit; 0 or less if it is within."""
        return value - self.limit if self.sign == "<=" else self.limit - value


@dataclass(frozen=True)
class Search:
    """The `search` of a file.

    Attributes:
        trials: for each variant; the first is the variant as it is.
        objective: one of `OBJECTIVES`.
        constraints: recipes that break one are worse than all others.
        sampler: one of `SAMPLERS`.
        seed: of the sampler.
        parallel: trials of a variant that are proposed together, before any of them has a result.
        space: by variant, each field's choices, or low, high and log.
        maker: makes the runs.
    """

    trials: int
    objective: str
    constraints: tuple[Constraint, ...]
    sampler: str
    seed: int
    parallel: int
    space: Mapping[str, Mapping[str, Value]]
    maker: Maker

    def run(self, variant: str, number: int, changes: Mapping[str, Any]) -> Run:
        """The run of a trial."""
        place = next(iter(self.space[variant].values())).place
        fields = {f"{variant}.{path}": Value(value, place) for path, value in changes.items()}
        named = {NAME: Value(f"{variant} trial {number:03d}", place), "variants": Value(variant, place)}
        made = self.maker.made({**named, "profile": Value(DEVELOPMENT, place), **fields})
        if made is None:
            raise UsageError("\n".join(self.maker.problems))
        return made


def read(nodes: Nodes, node: yaml.Node, maker: Maker) -> Search | None:
    """The `search` of a file; problems are reported to `nodes`, and then it is None."""
    count = len(nodes.problems)
    fields = nodes.fields(node, FIELDS, ("trials", "space"))
    values = {name: plain(value) for name, value in fields.items() if name != "space"}
    for name, least in (("trials", 1), ("seed", 0), ("parallel", 1)):
        value = values.setdefault(name, least)
        if not isinstance(value, int) or value < least:
            nodes.problem(fields[name], f"{name} is {value!r}; give a whole number of at least {least}")
    for name, default, choices in (("objective", "generality", OBJECTIVES), ("sampler", "tpe", SAMPLERS)):
        if values.setdefault(name, default) not in choices:
            nodes.problem(fields[name], f"{name} is {values[name]!r}; use one of {', '.join(choices)}")
    constraints = []
    given = values.get("constraint", [])
    for text in given if isinstance(given, list) else [given]:
        found = CONSTRAINT.fullmatch(str(text))
        if found is None or found[1] not in MEASURED:
            example = f"MEASURE <= NUMBER, such as kl <= 0.01; measures are {', '.join(MEASURED)}"
            nodes.problem(fields["constraint"], f"constraint is {text!r}; write {example}")
        else:
            constraints.append(Constraint(found[1], found[2], float(found[3])))
    space = _space(nodes, fields["space"]) if "space" in fields else {}
    if (profile := maker.base_profile()) not in ("", DEVELOPMENT):
        nodes.problem(
            node,
            f"a search chooses recipes by development questions; leave out profile ({profile}) in a file with search",
        )
    if len(nodes.problems) > count:
        return None
    search = Search(
        *(values["trials"], values["objective"], tuple(constraints), values["sampler"], values["seed"]),
        *(values["parallel"], space, maker),
    )
    for variant, fields_of in space.items():  # each end of each field by itself, so that no trial is refused later
        for path, value in fields_of.items():
            for content in value.content if isinstance(value.content, list) else _ends(value.content):
                maker.made({"variants": Value(variant, value.place), f"{variant}.{path}": Value(content, value.place)})
    return search


def _space(nodes: Nodes, node: yaml.Node) -> dict[str, dict[str, Value]]:
    found: dict[str, dict[str, Value]] = {}
    for variant, entry in nodes.mapping(node, "space").items():
        found[variant] = {}
        for path, choice in nodes.mapping(entry, variant).items():
            content = plain(choice)
            if isinstance(content, dict):
                nodes.fields(choice, ("low", "high", "log"), ("low", "high"))
                low, high = content.get("low"), content.get("high")
                if not (_is_number(low) and _is_number(high)):
                    nodes.problem(choice, f"low and high of {path} must be numbers")
                elif not low < high:
                    nodes.problem(choice, f"low of {path} is not below high")
                elif content.get("log") and low <= 0:
                    nodes.problem(choice, f"low of {path} must be more than 0 with log")
            elif not isinstance(content, list) or len(content) < 2:
                nodes.problem(choice, f"{path} needs a list of values, or low and high")
                continue
            found[variant][path] = Value(content, nodes.place(choice))
    return found


def _is_number(content: Any) -> TypeGuard[int | float]:
    return isinstance(content, int | float) and not isinstance(content, bool)


def _ends(content: Mapping[str, Any]) -> list[Any]:
    return [content["low"], content["high"]]


def library() -> Any:
    """Optuna.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(MISSING) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Course:
    """The trials of one variant.

    Args:
        search: the search.
        variant: its name.
    """

    def __init__(self, search: Search, variant: str) -> None:
        optuna = library()
        self._search, self._variant, self._space = search, variant, search.space[variant]
        self._failed = optuna.trial.TrialState.FAIL
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        direction = "minimize" if search.objective in LESS else "maximize"
        self._study = optuna.create_study(sampler=samplers[search.sampler](seed=search.seed), direction=direction)
        self.runs: list[Run] = []
        self._asked: list[tuple[Run, Any]] = []

    def ask(self) -> list[Run]:
        """The next trials; none if all are made."""
        count = min(self._search.parallel if self.runs else 1, self._search.trials - len(self.runs))
        for _ in range(count):
            number = len(self.runs)
            trial = self._study.ask() if number else None
            changes = {path: _drawn(trial, path, value.content) for path, value in self._space.items()} if trial else {}
            self.runs.append(self._search.run(self._variant, number, changes))
            self._asked.append((self.runs[-1], trial))
        return [run for run, _ in self._asked]

    def tell(self, out: Path) -> bool:
        """Tell the sampler what came of the trials that `ask` gave; False if one has not ended."""
        for run, trial in self._asked:
            if state(out / RUNS / run.folder).status not in (DONE, FAILED):
                return False
            found = next((row for row in rows([run], out) if row.variant == self._variant), None)
            if trial is None:
                continue
            value = found.measures[self._search.objective] if found else None
            kept = {c: found.measures[c.measure] for c in self._search.constraints} if found else {}
            known = {constraint: measured for constraint, measured in kept.items() if measured is not None}
            if value is None or known != kept:
                self._study.tell(trial, state=self._failed)
                continue
            for constraint, measured in known.items():
                trial.set_constraint(f"{constraint.measure} {constraint.sign}", constraint.excess(measured))
            self._study.tell(trial, value)
        self._asked = []
        return True


def _drawn(trial: Any, path: str, content: Any) -> Any:
    """The value of a field that a trial proposes."""
    if isinstance(content, list):
        return content[trial.suggest_categorical(path, list(range(len(content))))]  # a choice may be a list itself
    low, high, log = content["low"], content["high"], bool(content.get("log"))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(path, low, high, log=log)
    return float(f"{trial.suggest_float(path, low, high, log=log):.4g}")


def made(search: Search, out: Path, make: Make) -> list[Run]:
    """Make all trials of all variants, and return them; stops at those that `make` leaves unmade.

    A trial that failed stays failed, because those after it were proposed without its result.
    """
    courses = [Course(search, variant) for variant in search.space]
    going = list(courses)
    while going:
        asked = {id(course): course.ask() for course in going}
        trials = [run for runs in asked.values() for run in runs]
        make([run for run in trials if state(out / RUNS / run.folder).status != FAILED])
        going = [course for course in going if asked[id(course)] and course.tell(out)]
    return [run for course in courses for run in course.runs]


def best(search: Search, found: Sequence[Row]) -> dict[str, Row]:
    """For each variant, the trial with the best objective of those that keep all constraints."""
    chosen: dict[str, Row] = {}
    sign = -1 if search.objective in LESS else 1
    for row in found:
        value = row.measures.get(search.objective)
        kept = [(c, row.measures.get(c.measure)) for c in search.constraints]
        if row.variant not in search.space or value is None:
            continue
        if any(measured is None or c.excess(measured) > 0 for c, measured in kept):
            continue
        old = chosen.get(row.variant)
        if old is None or sign * value > sign * (old.measures[search.objective] or 0.0):
            chosen[row.variant] = row
    return chosen


def section(search: Search, found: Sequence[Row], show: Show) -> Section:
    """The best trial of each variant."""
    rows: list[Sequence[str]] = []
    kept = " and ".join(f"{c.measure} {c.sign} {c.limit:g}" for c in search.constraints)
    for variant in search.space:
        row = best(search, found).get(variant)
        if row is None:
            rows.append((show(variant), "none keeps all constraints" if kept else "none has ended", "", "", ""))
            continue
        fields = {name: text for name, text in row.axes.items() if name.startswith(f"{variant}.")}
        told = ", ".join(f"{name.removeprefix(f'{variant}.')} {text}" for name, text in fields.items())
        measures = (shown(name, row.measures.get(name), still=row.still) for name in (search.objective, "kl"))
        rows.append((show(variant), show(row.run), show(told or "as it is"), *measures))
    return Section(
        "Best of the search",
        headers=("variant", "trial", "recipe", search.objective, "kl"),
        rows=rows,
        note=f"By {search.objective} on development questions"
        + (f", of the trials with {kept}" if kept else "")
        + f"; {search.trials} trials a variant.",
    )
