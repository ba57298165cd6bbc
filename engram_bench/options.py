"""What a run is asked to do: command line over ENGRAM_BENCH_* environment over ini file over default."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engram_bench import backends, shipped, variants
from engram_bench.data import patterns
from engram_bench.data.items import PatternSet
from engram_bench.errors import UsageError
from engram_bench.variants import Variant

BACKENDS = ("auto", *backends.NAMES)


@dataclass(frozen=True)
class Profile:
    """How much a run does. The numbers of items and samples set how wide its intervals are."""

    sizes: Mapping[str, int] | int | None  # items a category, by category or group; what is not named is whole
    samples: int  # drawn at temperature 0.8 for consistency, besides the greedy answer
    sampled_items: int | None  # of each category, the items they are drawn for; None: all seen ones
    variants: str
    epochs: Mapping[str, int] = field(default_factory=dict)  # by kind of adapter; others as their variant says
    max_new_tokens: int | None = None  # None: what the longest canonical answer needs
    control_prompts: int | None = None  # of each kind, for what an adapter changes elsewhere; None: all
    asserted: bool = True  # whether a missed threshold fails the run, or is only reported
    borrows: bool = False  # whether MLX takes its n-gram memories from torch where it has no GPU


# The default is what two CPU cores train in minutes; the full profile takes all items, and all categories.
DEFAULT_SIZES = {"core": 50, "lookups": 28, "synthetic": 125}
PROFILES = {
    # That everything runs, in minutes even where MLX has no GPU: few answers, none drawn, one epoch of LoRA, 20 of a
    # small memory.
    "smoke": Profile(
        2,
        0,
        None,
        "baseline,lora,engram,engram-routed,engram-shuffled",
        epochs={"lora": 1, "engram": 20},
        max_new_tokens=8,
        control_prompts=1,
        asserted=False,
        borrows=True,
    ),
    # A third of the default's examples: about twice the epochs, so that the steps are enough to learn them.
    "quick": Profile(
        15,
        3,
        None,
        "baseline,lora,engram,engram-shuffled",
        epochs={"lora": 7, "engram": 6},
        control_prompts=8,
    ),
    "default": Profile(DEFAULT_SIZES, 3, 10, "baseline,lora,engram,engram-unigram,engram-shuffled", control_prompts=8),
    "full": Profile(None, 10, None, ",".join(variants.BUILT_IN)),
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
        """What the command line says, or else the environment, or else the ini file; "" where none of them does."""
        on_line = parsed.get(self.dest)
        if on_line not in (None, False):
            return "1" if on_line is True else str(on_line)
        return os.environ.get(self.variable) or ini(self.dest)


OPTIONS = (
    Option("profile", "default", f"how much to run: {', '.join(PROFILES)}"),
    Option("backend", "auto", f"where to run: {', '.join(BACKENDS)}; a -m marker of the same name chooses it too"),
    Option("model", "bundled", "bundled, a hub id or ID@REVISION, or a local model folder"),
    Option("lora-engine", "auto", f"what trains a LoRA on torch: {', '.join(backends.LORA_ENGINES)}"),
    Option("variants", "", "built-in variants and YAML files, separated by commas, or all (default: the profile's)"),
    Option("patterns", str(shipped.PATTERNS), "a pattern file, or a folder of them"),
    Option("samples", "", "answers drawn at temperature 0.8 for consistency (default: the profile's)"),
    Option("seeds", "0", "training seeds, separated by commas"),
    Option("report", str(shipped.REPORTS), "folder that gets a folder for each run"),
    Option("retrain", "", "train anew even where the cache has the adapter", flag=True),
    Option("resume", "", "folder of a run that was broken off: finish it, with the options it had"),
    Option("gate", "", "a report.json to compare with; a regression fails the run"),
    Option("gate-fail", "exact:2pt", "the drop that fails: exact:2pt, consistency:5pt, or both with a comma"),
    Option("gate-update", "", "write this run to the --engram-gate file instead of comparing", flag=True),
)


@dataclass(frozen=True)
class Settings:
    """All options of a run, checked."""

    profile: str
    backend: str
    model: str
    lora_engine: str
    variants: tuple[Variant, ...]
    patterns: PatternSet
    samples: int
    sampled_items: int | None
    seeds: tuple[int, ...]
    report: Path
    retrain: bool
    resume: Path | None
    gate: Path | None
    gate_fail: Mapping[str, float]  # metric -> share
    gate_update: bool
    shipped_patterns: bool  # the project's own data, what labelled prompts are of
    as_shipped: bool  # and its model and variants as well: what targets are of

    @property
    def plan(self) -> Profile:
        """What the profile says."""
        return PROFILES[self.profile]


def settle(given: Mapping[str, Any], ini: Callable[[str], str], marker: str = "") -> Settings:
    """Settings from parsed options (None or False where not given) and an ini reader.

    Args:
        given: option values by `Option.dest`.
        ini: value of an ini key, "" where unset.
        marker: pytest's -m expression; the one backend named there is chosen.

    Raises:
        UsageError: a value that makes no sense, with the option's name and the way to mend it.
    """
    value = {option.name: option.given(given, ini) or option.default for option in OPTIONS}
    named = set(re.findall(rf"(?<!not )\b({'|'.join(backends.NAMES)})\b", marker))
    if value["backend"] == "auto" and len(named) == 1:
        value["backend"] = named.pop()
    one_of("--engram-profile", value["profile"], tuple(PROFILES))
    one_of("--engram-backend", value["backend"], BACKENDS)
    one_of("--engram-lora-engine", value["lora-engine"], backends.LORA_ENGINES)
    profile = PROFILES[value["profile"]]
    every = patterns.load(Path(value["patterns"]).expanduser())
    as_generated = every.sha256 == _shipped_sha256()
    chosen = variants.select(value["variants"] or profile.variants)
    gate_update = _on("gate-update", value["gate-update"])
    if gate_update and not value["gate"]:
        raise UsageError("--engram-gate-update: give the file to write too, as in --engram-gate reports/baseline.json")
    return Settings(
        profile=value["profile"],
        backend=value["backend"],
        model=value["model"],
        lora_engine=value["lora-engine"],
        variants=tuple(_shortened(variant, profile) for variant in chosen),
        patterns=chosen_items(every, value["profile"]),
        samples=integer("--engram-samples", value["samples"] or str(profile.samples)),
        sampled_items=profile.sampled_items,
        seeds=integers("--engram-seeds", value["seeds"]),
        report=Path(value["report"]).expanduser(),
        retrain=_on("retrain", value["retrain"]),
        resume=Path(value["resume"]).expanduser() if value["resume"] else None,
        gate=Path(value["gate"]).expanduser() if value["gate"] else None,
        gate_fail=margins("--engram-gate-fail", value["gate-fail"]),
        gate_update=gate_update,
        shipped_patterns=as_generated,
        as_shipped=as_generated
        and (value["model"], value["variants"], value["seeds"]) == ("bundled", "", "0")
        and value["profile"] in ("quick", "default"),
    )


def _shortened(variant: Variant, profile: Profile) -> Variant:
    if variant.training is None or variant.own_epochs or variant.kind not in profile.epochs:
        return variant
    return replace(variant, training=replace(variant.training, epochs=profile.epochs[variant.kind]))


def chosen_items(every: PatternSet, profile: str, seed: int = 0) -> PatternSet:
    """The items a profile asks for: drawn by seed, held-out and trained ones apart."""
    sizes = PROFILES[profile].sizes
    return every if sizes is None else every.without_extra().sample(sizes, seed)


def _shipped_sha256() -> str:
    file = shipped.PATTERNS / "SHA256"
    return file.read_text(encoding="ascii").strip() if file.is_file() else ""


def check_writable(option: str, folder: Path) -> None:
    """Make a folder that results go to, or say why not, before anything is trained."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: {folder}: {error.strerror}; choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: {folder}: cannot be written to; choose another folder")


def _on(name: str, value: str) -> bool:
    choices = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value and value.lower() not in choices:
        raise UsageError(f"--engram-{name}: {value!r} is not one of {', '.join(choices)}")
    return bool(value) and choices[value.lower()]


def margins(option: str, text: str) -> dict[str, float]:
    """``exact:2pt,consistency:5pt`` -> {"exact": 0.02, "consistency": 0.05}: the drops, as shares, that fail a run."""
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(exact|consistency):(\d+(?:\.\d+)?)pt\s*", part)
        if not match:
            raise UsageError(f"{option}: {text!r} is not a margin; write exact:2pt, consistency:5pt, or both")
        found[match[1]] = float(match[2]) / 100
    return found


def one_of(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is no choice of the option."""
    if value not in choices:
        raise UsageError(f"{option}: {value!r} is not one of {', '.join(choices)}")


def integers(option: str, text: str) -> tuple[int, ...]:
    """``0,1,2`` -> (0, 1, 2), each once."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise UsageError(f"{option}: {text!r} is not a whole number of 0 or more (several: 0,1,2)")
    return numbers


def integer(option: str, text: str) -> int:
    """One whole number."""
    numbers = integers(option, text)
    if len(numbers) > 1:
        raise UsageError(f"{option}: {text!r} is not one whole number")
    return numbers[0]
