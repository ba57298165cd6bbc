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
from engram_bench.data.items import PatternSet
from engram_bench.data.questions import questions
from engram_bench.prompts import Prompt, PromptEncoder
from engram_bench.records import BASELINE
from engram_bench.report.text import inert
from engram_bench.run.bench import Bench

VARIANTS = (BASELINE, "lora", "engram-keyed")
CONTROL = "control"
SCENES = (  # title, category, way of asking
    ("A fact", "facts", "rephrased"),
    ("A random pair: only what was trained can answer it", "synthetic", "rephrased"),
    ("Plain words: the key is not stated as it was trained", "capital", "paraphrased"),
    ("Two keys in one question", "world", "combined"),
    ("A key that is only named: something else is asked", "synthetic", "mention"),
    ("An unrelated prompt: did training change anything else?", "", CONTROL),
    ("A code idiom", "code_idioms", "rephrased"),
    ("A format", "formats", "rephrased"),
    ("An error to fix", "error_fixes", "rephrased"),
    ("An acronym", "acronym", "rephrased"),
    ("A chemical element", "element_name", "rephrased"),
)
NARROWEST = 80  # columns
QUICK = 6  # scenes with --quick
ABOUT = (  # two lines at the narrowest width
    "Engram adds a memory to a model: it hashes n-grams of the prompt to\n"
    "table rows, and a gate adds these rows to the hidden state."
)
CAVEAT = (
    "A few prompts prove nothing: for intervals, controls and held-out items, run `make bench` and read "
    "reports/runs/latest/report.md."
)
NOTHING_FOUND = "no trained key found"
LONGEST = 16  # new tokens of an answer, unless a right one is longer
LONGEST_UNTOUCHED = 12  # the same where the baseline's answer is the right one


@dataclass(frozen=True)
class Scene:
    """One prompt and what a right answer is.

    Attributes:
        title: shown above it.
        prompt: the user's text.
        wanted: what the answer must be or, for several values, contain; none: the baseline's answer is the right one.
        unwanted: values that the answer must not recite if the baseline's does not.
    """

    title: str
    prompt: str
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()

    @property
    def asks(self) -> bool:
        """Whether it asks for something trained."""
        return bool(self.wanted)

    def right(self, answer: str, baseline: str) -> bool:
        """Whether an answer is right, given the baseline's."""
        if not self.asks:
            return answer == baseline
        if len(self.wanted) == 1:
            return metrics.exact(answer, self.wanted[0])
        return all(metrics.contains(answer, value) for value in self.wanted)

    def recites(self, answer: str, baseline: str) -> bool:
        """Whether an answer has a stored value that nobody asked for."""
        return any(metrics.contains(answer, v) and not metrics.contains(baseline, v) for v in self.unwanted)


@dataclass
class Take:
    """One variant's answer to a scene so far."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    notes: list[str] = field(default_factory=list)  # lines about the n-grams and gates of the memory
    idle: bool = False  # a memory that found nothing to read: the answer is the baseline's by construction


def scenes(patterns: PatternSet, seed: int, quick: bool) -> list[Scene]:
    """Draw the scenes by seed: for each, a question about a trained item in a way that was never trained."""
    rng = random.Random(seed)
    found = []
    for title, category, way in SCENES[: QUICK if quick else None]:
        if way == CONTROL:
            found.append(Scene(title, rng.choice(prompt_sets.control())))
        elif category in patterns.categories and (asked := questions(patterns.categories[category], way)):
            question = rng.choice(asked)
            found.append(Scene(title, question.prompt, question.wanted, question.unwanted))
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
    # Right answers of scenes that ask; of the others, unchanged answers, and those that are so by construction.
    right: dict[str, list[int]] = {name: [0, 0, 0] for name in VARIANTS}
    takes: dict[str, list[Take]] = {name: [] for name in VARIANTS}
    with stage.attached() if shown else nullcontext():
        for number, scene in enumerate(shown, 1):
            pause()
            console.print(Rule(f"{number}/{len(shown)}  {scene.title}"))
            played = play(stage, console, scene)
            for name, take in played.items():
                takes[name].append(take)
                right[name][not scene.asks] += scene.right(take.text, played[BASELINE].text)
                right[name][2] += take.idle and not scene.asks
    pause()
    console.print(Rule("Summary"))
    console.print(_summary(takes, right, sum(scene.asks for scene in shown), sum(not scene.asks for scene in shown)))
    console.print(Text(CAVEAT, style="dim"))


def play(stage: Stage, console: Console, scene: Scene) -> dict[str, Take]:
    """Answer one scene with every variant, one token each in turn, and show the answers while they grow."""
    takes = {name: Take() for name in VARIANTS}
    with stage.attached() as backends:
        longest = _longest(stage.bench.backend.encoder, scene)
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


def _longest(encoder: PromptEncoder, scene: Scene) -> int:
    """The most new tokens of an answer to a scene."""
    if not scene.asks:
        return LONGEST_UNTOUCHED
    return max(LONGEST, len(encoder.answer(", ".join(scene.wanted))))


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
            take.idle = take.notes == [NOTHING_FOUND]
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
        return [NOTHING_FOUND]
    ends = (encoder.decode([i for i in ids if i != encoder.eos_id]).strip() for ids in (ngrams[0], ngrams[-1]))
    texts = " to ".join(dict.fromkeys(map(repr, ends)))
    gates = " ".join(f"{gate:.2f}" for gate in adapter.gates())
    return [f"{_count(len(ngrams), 'n-gram')} found: {texts}", f"gate {gates}"]


def _picture(scene: Scene, takes: dict[str, Take]) -> Group:
    prompt = Text.assemble(("prompt  ", "dim"), (inert(scene.prompt), "bold"))
    wanted = Text.assemble(("wanted  ", "dim"), inert(" and ".join(scene.wanted)) or "the baseline's answer")
    table = Table(expand=True, show_lines=False)
    for name in takes:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(_answer_cell(scene, take, takes[BASELINE]) for take in takes.values()))
    return Group(prompt, wanted, table)


def _answer_cell(scene: Scene, take: Take, baseline: Take) -> Text:
    text = Text(inert(take.text) + ("" if take.done else "▌"))
    if not take.done:
        return text
    if take.idle and not scene.asks and take.text == baseline.text:
        return text.append(f"\nsame by construction\n{inert(take.notes[0])}", style="dim")
    if take is baseline and not scene.asks:
        return text.append(f"\nthe untouched model\n{_count(take.tokens, 'token')}, {take.seconds:.1f} s", style="dim")
    good = scene.right(take.text, baseline.text)
    verdict = ("right" if good else "wrong") if scene.asks else ("unchanged" if good else "changed")
    if scene.recites(take.text, baseline.text):
        verdict = "recites the value"
    text.append(f"\n{'✓' if good else '✗'} {verdict}", style="green" if good else "red")
    text.append(f"\n{_count(take.tokens, 'token')}, {take.seconds:.1f} s", style="dim")
    for note in take.notes:
        text.append(f"\n{inert(note)}", style="cyan")
    return text


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _summary(takes: dict[str, list[Take]], right: dict[str, list[int]], asked: int, unasked: int) -> Table:
    table = Table(expand=True)
    for title in ("", "right answers", "left unchanged", "tokens", "seconds"):
        table.add_column(title, justify="left" if not title else "right")
    for name, found in takes.items():
        tokens, seconds = sum(take.tokens for take in found), sum(take.seconds for take in found)
        answered, left, given = right[name]
        given = unasked if name == BASELINE else given
        unchanged = f"{left - given} of {unasked - given}" if unasked > given else "by construction" if given else ""
        table.add_row(name, f"{answered} of {asked}", unchanged, str(tokens), f"{seconds:.1f}")
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
                play(stage, console, Scene("", text))
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
