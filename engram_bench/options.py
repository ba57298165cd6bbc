"""Options of a run. The command line overrides ENGRAM_BENCH_* variables, which override the ini file and defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engram_bench import backends, shipped, variants
from engram_bench.data import patterns
from engram_bench.data.development import development
from engram_bench.data.items import PatternSet
from engram_bench.data.training import KINDS as TRAININGS
from engram_bench.errors import UsageError
from engram_bench.variants import Variant

BACKENDS = ("auto", *backends.NAMES)


@dataclass(frozen=True)
class Profile:
    """How much a run does. More items and samples make its intervals narrower."""

    sizes: Mapping[str, int] | int | None  # items per category, by category or group; None or no entry: all
    samples: int  # answers sampled per item at temperature 0.8, for consistency; the greedy answer is extra
    sampled_items: int | None  # items per category that get sampled answers; None: all seen items
    variants: str
    epochs: Mapping[str, int] = field(default_factory=dict)  # by kind of adapter, exactly; default: the variant's own
    asked_items: int | None = None  # questions per category in ways other than seen, rephrased and heldout; None: all
    asked_whole: tuple[str, ...] = ()  # ways in which each category is asked all its questions all the same
    draw: int = 0  # random seed of the choice of items
    max_new_tokens: int | None = None  # None: enough for the longest canonical answer
    control_prompts: int | None = None  # prompts per kind, for collateral; None: all
    asserted: bool = True  # a missed threshold fails the run; if False, it is only reported
    borrows: bool = False  # if MLX has no GPU, torch trains its n-gram memories
    development: bool = False  # asks the questions for choosing recipes, see `data.development`

    def most(self, way: str) -> int | None:
        """Most questions per category in a way; None: all."""
        return None if way in self.asked_whole else self.asked_items


# Two CPU cores without AVX512 train each variant of the default profile in minutes. The full profile has all items of
# all categories.
PROFILES = {
    # Shows that everything runs, in minutes even with MLX and no GPU: few answers, none sampled, and too few epochs to
    # learn the facts.
    "smoke": Profile(
        2,
        0,
        None,
        "baseline,lora,engram-keyed,engram-routed,engram-keyed-shuffled",
        epochs={"lora": 1, "engram": 4, "engram-hearing": 1},
        asked_items=1,
        max_new_tokens=8,
        control_prompts=1,
        asserted=False,
        borrows=True,
    ),
    "quick": Profile(
        {"core": 3, "lookups": 2, "synthetic": 2, "world": 8},
        3,
        None,
        "baseline,lora,engram-keyed",
        asked_items=3,
        control_prompts=2,
    ),
    # Mostly the world's items, which alone have development sentences in plain words, so that a trial can tell recipes
    # apart there.
    "development": Profile(
        {"core": 2, "lookups": 2, "synthetic": 2, "world": 12},
        0,
        None,
        "baseline,lora,engram-keyed",
        asserted=False,
        development=True,
    ),
    "default": Profile(
        {"core": 6, "lookups": 3, "synthetic": 6, "world": 24},
        3,
        6,
        "baseline,prompted,retrieval,lora,lora-bare,engram,engram-hearing,engram-keyed,engram-keyed-bare,engram-keyed-shuffled",
        asked_items=5,
        asked_whole=("applied", "paraphrased"),  # the first is the way of the primary contrast
        control_prompts=8,
        draw=1,  # recipes and the primary contrast were chosen on the items of draw 0
    ),
    "full": Profile({"world": 800}, 10, None, ",".join(variants.BUILT_IN)),
    # Somebody's own facts: all of them, and no thresholds, which the shipped data's are.
    "facts": Profile(
        {},
        0,
        None,
        "baseline,retrieval,lora,engram-keyed",
        asked_items=100,
        control_prompts=8,
        asserted=False,
    ),
}


@dataclass(frozen=True)
class Option:
    """One option: ``--engram-NAME``, ENGRAM_BENCH_NAME, ``engram_NAME`` in the ini file."""

    name: str
    default: str
    help: str
    flag: bool = False

    @property
    def dest(self) -> str:
        return f"engram_{self.name.replace('-', '_')}"

    @property
    def variable(self) -> str:
        return f"ENGRAM_BENCH_{self.name.replace('-', '_').upper()}"

    def given(self, parsed: Mapping[str, Any], ini: Callable[[str], str]) -> str:
        """The value on the command line, else in the environment, else in the ini file; "" if none of them sets it."""
        on_line = parsed.get(self.dest)
        if on_line not in (None, False):
            return "1" if on_line is True else str(on_line)
        return os.environ.get(self.variable) or ini(self.dest)


OPTIONS = (
    Option("profile", "default", f"how much to run: {', '.join(PROFILES)}"),
    Option("backend", "auto", f"where to run: {', '.join(BACKENDS)}; -m with one of these names selects it too"),
    Option("model", "bundled", "the model: bundled, a hub id, ID@REVISION, or a local model folder"),
    Option("lora-engine", "auto", f"library that trains a LoRA with torch: {', '.join(backends.LORA_ENGINES)}"),
    Option(
        "variants",
        "",
        "built-in variants, YAML files, all, ladder or ablations, separated by commas (default: the profile's)",
    ),
    Option("patterns", str(shipped.PATTERNS), "a pattern file, a folder of them, or a table of facts"),
    Option("items", "", "items of each category, drawn (default: the profile's)"),
    Option("training", "rich", f"the questions trained on: {', '.join(TRAININGS)}"),
    Option("samples", "", "answers sampled per item at temperature 0.8, for consistency (default: the profile's)"),
    Option("seeds", "0", "training seeds, separated by commas"),
    Option("report", str(shipped.REPORTS), "folder for results; each run creates its own folder in it"),
    Option("retrain", "", "train again even if the adapter is cached", flag=True),
    Option("reask", "", "ask again, even what an earlier run kept the answers to", flag=True),
    Option("resume", "", "folder of an interrupted run, to finish it; repeat its other options"),
    Option("gate", "", "report.json or folder of a baseline run to compare with; a regression fails the run"),
    Option(
        "gate-fail",
        "exact:2pt",
        "drop that fails the run if exceeded: exact:2pt, consistency:5pt, or both with a comma",
    ),
    Option("gate-update", "", "write this run's report to the --engram-gate file instead of comparing", flag=True),
)


@dataclass(frozen=True)
class Settings:
    """All options of a run, validated."""

    profile: str
    backend: str
    model: str
    lora_engine: str
    variants: tuple[Variant, ...]
    patterns: PatternSet
    training: str  # "rich" or "bare", see `data.training`
    samples: int
    sampled_items: int | None
    seeds: tuple[int, ...]
    report: Path
    retrain: bool
    reask: bool
    resume: Path | None
    gate: Path | None
    gate_fail: Mapping[str, float]  # metric -> drop that fails the run, as a share
    gate_update: bool
    shipped_patterns: bool  # the patterns are the shipped ones, to which the routing prompts belong
    as_shipped: bool  # model, variants, seed and profile are such that the targets apply, too

    @property
    def plan(self) -> Profile:
        """The definition of `profile`."""
        return PROFILES[self.profile]


def settle(given: Mapping[str, Any], ini: Callable[[str], str], marker: str = "") -> Settings:
    """Validate the options of a run.

    Args:
        given: parsed option values by `Option.dest`; None or False if not given.
        ini: returns the value of an ini key, "" if unset.
        marker: pytest's -m expression; if it names exactly one backend, that one is selected.

    Raises:
        UsageError: a value is invalid; the message names the option and the fix.
    """
    value = {option.name: option.given(given, ini) or option.default for option in OPTIONS}
    named = set(re.findall(rf"(?<!not )\b({'|'.join(backends.NAMES)})\b", marker))
    if value["backend"] == "auto" and len(named) == 1:
        value["backend"] = named.pop()
    one_of("--engram-profile", value["profile"], tuple(PROFILES))
    one_of("--engram-backend", value["backend"], BACKENDS)
    one_of("--engram-lora-engine", value["lora-engine"], backends.LORA_ENGINES)
    one_of("--engram-training", value["training"], TRAININGS)
    profile = PROFILES[value["profile"]]
    every = patterns.load(Path(value["patterns"]).expanduser())
    is_shipped = every.sha256 == _shipped_sha256()
    chosen = variants.select(value["variants"] or profile.variants)
    gate_update = _on("gate-update", value["gate-update"])
    if gate_update and not value["gate"]:
        raise UsageError("--engram-gate-update: no file to write; add --engram-gate reports/baseline.json")
    if gate_update and Path(value["gate"]).expanduser().is_dir():
        raise UsageError(f"--engram-gate-update: {value['gate']} is a folder; name the file to write")
    return Settings(
        profile=value["profile"],
        backend=value["backend"],
        model=value["model"],
        lora_engine=value["lora-engine"],
        variants=tuple(_shortened(variant, profile) for variant in chosen),
        patterns=chosen_items(every, value["profile"], items=_count("--engram-items", value["items"])),
        training=value["training"],
        samples=integer("--engram-samples", value["samples"] or str(profile.samples)),
        sampled_items=profile.sampled_items,
        seeds=integers("--engram-seeds", value["seeds"]),
        report=Path(value["report"]).expanduser(),
        retrain=_on("retrain", value["retrain"]),
        reask=_on("reask", value["reask"]),
        resume=Path(value["resume"]).expanduser() if value["resume"] else None,
        gate=Path(value["gate"]).expanduser() if value["gate"] else None,
        gate_fail=margins("--engram-gate-fail", value["gate-fail"]),
        gate_update=gate_update,
        shipped_patterns=is_shipped and not profile.development,
        as_shipped=is_shipped
        and [value[name] for name in ("model", "variants", "seeds", "training", "items")]
        == ["bundled", "", "0", "rich", ""]
        and value["profile"] in ("quick", "default"),
    )


def _shortened(variant: Variant, profile: Profile) -> Variant:
    if variant.training is None or variant.own_epochs or variant.kind not in profile.epochs:
        return variant
    return replace(variant, training=replace(variant.training, epochs=profile.epochs[variant.kind], steps=()))


def chosen_items(every: PatternSet, profile: str, seed: int = 0, items: int | None = None) -> PatternSet:
    """The items a profile uses, drawn by its own seed plus `seed`; see `PatternSet.sample`.

    Args:
        every: all items.
        profile: name of the profile.
        seed: a different seed draws different items.
        items: how many of each category, in place of the profile's numbers.
    """
    plan = PROFILES[profile]
    sizes = plan.sizes if items is None else items
    chosen = every
    if sizes is not None:
        chosen = (every if profile == "full" else every.without_extra()).sample(sizes, plan.draw + seed)
    return development(chosen) if plan.development else chosen


def _count(option: str, text: str) -> int | None:
    """A number of things, at least 1; None for ""."""
    if not text:
        return None
    if not (found := integer(option, text)):
        raise UsageError(f"{option}: 0 leaves nothing to ask; give 1 or more")
    return found


def _shipped_sha256() -> str:
    file = shipped.PATTERNS / "SHA256"
    return file.read_text(encoding="ascii").strip() if file.is_file() else ""


def check_writable(option: str, folder: Path) -> None:
    """Create a folder for results, before any training.

    Raises:
        UsageError: the folder cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: {folder}: {error.strerror}; choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: {folder}: is not writable; choose another folder")


def _on(name: str, value: str) -> bool:
    choices = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value and value.lower() not in choices:
        raise UsageError(f"--engram-{name}: {value!r} is not one of {', '.join(choices)}")
    return bool(value) and choices[value.lower()]


def margins(option: str, text: str) -> dict[str, float]:
    """Parse ``exact:2pt,consistency:5pt`` into {"exact": 0.02, "consistency": 0.05}: the drops that fail a run."""
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(exact|consistency):(\d+(?:\.\d+)?)pt\s*", part)
        if not match:
            raise UsageError(f"{option}: {text!r} is not a margin; write exact:2pt or exact:2pt,consistency:5pt")
        found[match[1]] = float(match[2]) / 100
    return found


def one_of(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise a UsageError unless the value is one of the choices."""
    if value not in choices:
        raise UsageError(f"{option}: {value!r} is not one of {', '.join(choices)}")


def integers(option: str, text: str) -> tuple[int, ...]:
    """Parse ``0,1,2`` into (0, 1, 2); drops duplicates."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise UsageError(f"{option}: {text!r} is not a whole number of at least 0 (several: 0,1,2)")
    return numbers


def integer(option: str, text: str) -> int:
    """Parse one whole number."""
    numbers = integers(option, text)
    if len(numbers) > 1:
        raise UsageError(f"{option}: {text!r} is not one whole number; give only one")
    return numbers[0]
