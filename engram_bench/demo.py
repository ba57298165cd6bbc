"""The demo: the baseline, LoRA and the memory answer a few prompts side by side, token by token.

It is made for screen recordings and computes every answer live. It illustrates effects; the report measures them.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
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
SCENES = (  # title, category; None: a prompt that asks for no trained item
    ("A fact", "facts"),
    ("A random pair: only memory can answer it", "synthetic"),
    ("An unrelated prompt: did training change anything else?", None),
    ("A code idiom", "code_idioms"),
    ("A format", "formats"),
    ("An error to fix", "error_fixes"),
    ("An acronym", "acronym"),
    ("A chemical element", "element_name"),
)
NARROWEST = 80  # columns
QUICK = 3  # scenes with --quick
ABOUT = (  # two lines at the narrowest width
    "Engram adds a memory to a model: it hashes n-grams of the prompt to\n"
    "table rows, and a gate adds these rows to the hidden state."
)
CAVEAT = (
    "A few prompts prove nothing: for intervals, controls and held-out items, run `make bench` and read "
    "reports/runs/latest/report.md."
)
LONGEST_UNRELATED = 24  # new tokens of an answer to an unrelated prompt


@dataclass(frozen=True)
class Scene:
    """One prompt; `item` is the trained item that it asks for, None for an unrelated prompt."""

    title: str
    prompt: str
    item: Item | None


@dataclass
class Take:
    """One variant's answer to a scene so far."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    notes: list[str] = field(default_factory=list)  # lines about the n-grams and gates of the memory


def scenes(patterns: PatternSet, seed: int, quick: bool) -> list[Scene]:
    """Draw the scenes by seed: for each category, a trained item in an untrained phrasing."""
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
    """One loaded model per variant, so that all variants can answer side by side."""

    bench: Bench
    backends: dict[str, Backend] = field(default_factory=dict)
    _on: bool = False

    @contextmanager
    def attached(self) -> Iterator[dict[str, Backend]]:
        """Attach each variant's adapter to its model and yield the models by variant; the first call loads them.

        Inside such a context, further calls cost nothing.
        """
        if self._on:
            yield self.backends
            return
        for name in VARIANTS:
            if name not in self.backends:
                self.backends[name] = self.bench.load_model() if self.backends else self.bench.backend
        with ExitStack() as stack:
            for name, backend in self.backends.items():
                stack.enter_context(backend.attached(self.bench.adapter(name)))
            self._on = True
            stack.callback(setattr, self, "_on", False)
            yield self.backends


def show(stage: Stage, console: Console, shown: Sequence[Scene], pause: Callable[[], object]) -> None:
    """Run the whole demo: title, scenes, summary. It calls `pause` before each scene and before the summary."""
    console.print(Panel(Text(ABOUT, justify="center"), title="[bold]engram-bench", padding=(1, 2)))
    right = dict.fromkeys(VARIANTS, 0)
    takes: dict[str, list[Take]] = {name: [] for name in VARIANTS}
    with stage.attached() if shown else nullcontext():
        for number, scene in enumerate(shown, 1):
            pause()
            console.print(Rule(f"{number}/{len(shown)}  {scene.title}"))
            for name, take in play(stage, console, scene).items():
                takes[name].append(take)
                right[name] += scene.item is not None and metrics.exact(take.text, scene.item.output)
    pause()
    console.print(Rule("Summary"))
    console.print(_summary(takes, right, sum(scene.item is not None for scene in shown)))
    console.print(Text(CAVEAT, style="dim"))


def play(stage: Stage, console: Console, scene: Scene) -> dict[str, Take]:
    """Answer one scene with every variant, one token each in turn, and show the answers while they grow."""
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
    """Fill `take`; each step adds one token."""
    prompt = backend.encoder.prompt(scene.prompt)
    stream = backend.stream(prompt, longest)
    ids: list[int] = []
    while not take.done:
        started = time.perf_counter()
        token = next(stream, None)
        take.seconds += time.perf_counter() - started
        if not ids and adapter:
            take.notes = _lookup_notes(backend.encoder, adapter, prompt)
        if token is None:
            take.done = True
        else:
            ids.append(token)
            take.tokens, take.text = len(ids), backend.encoder.decode(ids)
        yield


def _lookup_notes(encoder: PromptEncoder, adapter: Adapter, prompt: Prompt) -> list[str]:
    """Describe the n-grams that a memory found for the answer's first token, and how far its gates opened."""
    ngrams = adapter.found(prompt)
    if ngrams is None:
        return []
    if not ngrams:
        return ["no trained key found"]
    ends = (encoder.decode([i for i in ids if i != encoder.eos_id]).strip() for ids in (ngrams[0], ngrams[-1]))
    texts = " to ".join(dict.fromkeys(map(repr, ends)))
    gates = " ".join(f"{gate:.2f}" for gate in adapter.gates())
    return [f"{_count(len(ngrams), 'n-gram')} found: {texts}", f"gate {gates}"]


def _picture(scene: Scene, takes: dict[str, Take]) -> Group:
    prompt = Text.assemble(("prompt  ", "dim"), (inert(scene.prompt), "bold"))
    wanted = Text.assemble(("wanted  ", "dim"), inert(scene.item.output) if scene.item else "the baseline's answer")
    table = Table(expand=True, show_lines=False)
    for name in takes:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(_answer_cell(scene, take, takes["baseline"]) for take in takes.values()))
    return Group(prompt, wanted, table)


def _answer_cell(scene: Scene, take: Take, baseline: Take) -> Text:
    text = Text(inert(take.text) + ("" if take.done else "▌"))
    if not take.done:
        return text
    if take is baseline and scene.item is None:
        return text.append(f"\nthe untouched model\n{_count(take.tokens, 'token')}, {take.seconds:.1f} s", style="dim")
    good = take.text == baseline.text if scene.item is None else metrics.exact(take.text, scene.item.output)
    verdict = ("unchanged" if good else "changed") if scene.item is None else ("right" if good else "wrong")
    text.append(f"\n{'✓' if good else '✗'} {verdict}", style="green" if good else "red")
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
    """Answer every prompt that the user types with all variants, until Ctrl-C or an empty line."""
    console.print(Text("Type a prompt; an empty line or Ctrl-C ends the demo.", style="dim"))
    with stage.attached():
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
    """Yield a stream that records its text with timestamps as asciicast v2, and also writes to a terminal if any."""
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
