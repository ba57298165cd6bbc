"""The demo: a few prompts, each answered by the untouched model, by LoRA and by the memory, side by side as they type.

Made for screen recording; it shows, the report proves. Everything on the screen is computed while it is shown.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from engram_bench import metrics
from engram_bench.backends.base import Adapter, Backend
from engram_bench.data import prompt_sets
from engram_bench.data.items import Item, PatternSet
from engram_bench.prompts import Prompt, PromptEncoder
from engram_bench.report.text import inert
from engram_bench.run.bench import Bench

VARIANTS = ("baseline", "lora", "engram")
SCENES = (  # title, category; None: a prompt that asks for nothing that was trained
    ("A fact", "facts"),
    ("A random pair: nothing but memory can know it", "synthetic"),
    ("An unrelated prompt: what else did training change?", None),
    ("A code idiom", "code_idioms"),
    ("A format", "formats"),
    ("An error to fix", "error_fixes"),
    ("An acronym", "acronym"),
    ("A chemical element", "element_name"),
)
NARROWEST = 80  # columns
QUICK = 3  # scenes of --quick
ABOUT = (  # two lines at the narrowest
    "Engram is a memory beside a model: n-grams of the prompt are hashed to\n"
    "rows of a table, and a gate lets these into the hidden state."
)
CAVEAT = (
    "A few prompts prove nothing: for intervals, controls and what was never trained, run `make bench` and read "
    "reports/runs/latest/report.md."
)
LONGEST_UNRELATED = 24  # new tokens of an answer that has no right length


@dataclass(frozen=True)
class Scene:
    """One prompt; `item` is what it asks for, None where that was never trained."""

    title: str
    prompt: str
    item: Item | None


@dataclass
class Take:
    """One variant's answer to a scene, as far as it has come."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    notes: list[str] = field(default_factory=list)  # what the memory looked up


def scenes(patterns: PatternSet, seed: int, quick: bool) -> list[Scene]:
    """What is shown: a trained item of each category in a phrasing never trained, drawn by seed."""
    rng = random.Random(seed)
    found = []
    for title, category in SCENES[: QUICK if quick else None]:
        if category is None:
            found.append(Scene(title, rng.choice(prompt_sets.control()), None))
        elif category in patterns.categories:
            item = rng.choice(patterns.categories[category].split("seen"))
            found.append(Scene(title, patterns.categories[category].question(item, "rephrased")[1], item))
    return found


@dataclass
class Stage:
    """A model for each variant, with its adapter on it: they answer side by side."""

    bench: Bench
    backends: dict[str, Backend] = field(default_factory=dict)

    @contextmanager
    def attached(self) -> Iterator[dict[str, Backend]]:
        """The models by variant, loaded when first asked for."""
        for name in VARIANTS:
            if name not in self.backends:
                self.backends[name] = self.bench.load_model()
        with ExitStack() as stack:
            for name, backend in self.backends.items():
                stack.enter_context(backend.attached(self.bench.adapter(name)))
            yield self.backends


def show(stage: Stage, console: Console, shown: Sequence[Scene], pause: Callable[[], object]) -> None:
    """The whole demo: title, each scene, and what it came to."""
    console.print(Panel(Text(ABOUT, justify="center"), title="[bold]engram-bench", padding=(1, 2)))
    right = dict.fromkeys(VARIANTS, 0)
    takes: dict[str, list[Take]] = {name: [] for name in VARIANTS}
    for number, scene in enumerate(shown, 1):
        pause()
        console.print(Rule(f"{number}/{len(shown)}  {scene.title}"))
        for name, take in play(stage, console, scene).items():
            takes[name].append(take)
            right[name] += scene.item is not None and metrics.exact(take.text, scene.item.output)
    pause()
    console.print(Rule("What this came to"))
    console.print(_summary(takes, right, sum(scene.item is not None for scene in shown)))
    console.print(Text(CAVEAT, style="dim"))


def play(stage: Stage, console: Console, scene: Scene) -> dict[str, Take]:
    """Every variant's answer to one scene, typed as it is made, a token of each in turn."""
    takes = {name: Take() for name in VARIANTS}
    with stage.attached() as backends:
        longest = LONGEST_UNRELATED if scene.item is None else stage.bench.max_new_tokens
        steps = zip_longest(
            *(_answer(backends[name], stage.bench.adapter(name), scene, longest, take) for name, take in takes.items())
        )
        if console.is_terminal:
            with Live(_picture(scene, takes), console=console, auto_refresh=False) as live:
                for _ in steps:
                    live.update(_picture(scene, takes), refresh=True)
        else:
            list(steps)
            console.print(_picture(scene, takes))
    return takes


def _answer(backend: Backend, adapter: Adapter | None, scene: Scene, longest: int, take: Take) -> Iterator[None]:
    """Fills `take`, a step each token."""
    prompt = backend.encoder.prompt(scene.prompt)
    stream = backend.stream(prompt, longest)
    ids: list[int] = []
    while not take.done:
        started = time.perf_counter()
        token = next(stream, None)
        take.seconds += time.perf_counter() - started
        if not ids and adapter:
            take.notes = _looked_up(backend.encoder, adapter, prompt)
        if token is None:
            take.done = True
        else:
            ids.append(token)
            take.tokens, take.text = len(ids), backend.encoder.decode(ids)
        yield


def _looked_up(encoder: PromptEncoder, adapter: Adapter, prompt: Prompt) -> list[str]:
    """Which n-grams a memory found for the first token of the answer, and how far its gates opened."""
    ngrams = adapter.found(prompt)
    if ngrams is None:
        return []
    if not ngrams:
        return ["no trained key: silent"]
    ends = (encoder.decode([i for i in ids if i != encoder.eos_id]).strip() for ids in (ngrams[0], ngrams[-1]))
    texts = " to ".join(dict.fromkeys(map(repr, ends)))
    gates = " ".join(f"{gate:.2f}" for gate in adapter.gates())
    return [f"{_count(len(ngrams), 'n-gram')} found: {texts}", f"gate {gates}"]


def _picture(scene: Scene, takes: dict[str, Take]) -> Group:
    prompt = Text.assemble(("prompt  ", "dim"), (inert(scene.prompt), "bold"))
    wanted = Text.assemble(("wanted  ", "dim"), inert(scene.item.output) if scene.item else "what the baseline says")
    table = Table(expand=True, show_lines=False)
    for name in takes:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(_typed(scene, take, takes["baseline"]) for take in takes.values()))
    return Group(prompt, wanted, table)


def _typed(scene: Scene, take: Take, baseline: Take) -> Text:
    text = Text(inert(take.text) + ("" if take.done else "▌"))
    if not take.done:
        return text
    if take is baseline and scene.item is None:
        return text.append(f"\nthe untouched model\n{_count(take.tokens, 'token')}, {take.seconds:.1f} s", style="dim")
    good = take.text == baseline.text if scene.item is None else metrics.exact(take.text, scene.item.output)
    told = ("unchanged" if good else "changed") if scene.item is None else ("right" if good else "wrong")
    text.append(f"\n{'✓' if good else '✗'} {told}", style="green" if good else "red")
    text.append(f"\n{_count(take.tokens, 'token')}, {take.seconds:.1f} s", style="dim")
    for note in take.notes:
        text.append(f"\n{inert(note)}", style="cyan")
    return text


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _summary(takes: dict[str, list[Take]], right: dict[str, int], asked: int) -> Table:
    table = Table(expand=True)
    for title in ("", "right answers", "tokens", "seconds"):
        table.add_column(title, justify="left" if not title else "right")
    for name, found in takes.items():
        tokens, seconds = sum(take.tokens for take in found), sum(take.seconds for take in found)
        table.add_row(name, f"{right[name]} of {asked}", str(tokens), f"{seconds:.1f}")
    return table


def interact(stage: Stage, console: Console) -> None:
    """Whatever the user types, answered by all variants, until Ctrl-C or an empty line."""
    console.print(Text("Type a prompt; an empty line or Ctrl-C ends.", style="dim"))
    while True:
        try:
            text = console.input("[bold]> ").strip()
            if not text:
                return
            play(stage, console, Scene("", text, None))
        except (KeyboardInterrupt, EOFError):
            console.print()
            return


@contextmanager
def recorded(path: Path, width: int, height: int) -> Iterator[Any]:
    """A stream that keeps what it is given, with its time, in an asciicast v2 file, and shows it on a terminal."""
    shown = sys.stdout if sys.stdout.isatty() else None
    with path.open("w", encoding="utf-8") as file:
        header = {"version": 2, "width": width, "height": height, "timestamp": int(time.time())}
        file.write(json.dumps(header) + "\n")
        started = time.monotonic()

        class Tee:
            encoding = "utf-8"

            def write(self, text: str) -> int:
                event = [round(time.monotonic() - started, 4), "o", text.replace("\n", "\r\n")]
                file.write(json.dumps(event, ensure_ascii=False) + "\n")
                return shown.write(text) if shown else len(text)

            def flush(self) -> None:
                if shown:
                    shown.flush()

            def isatty(self) -> bool:
                return True

        yield Tee()
