"""Development data for choosing recipes, which no suite asks and no run trains, and the trial of one recipe."""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engram_bench import metrics
from engram_bench.backends.base import Backend
from engram_bench.data import prompt_sets
from engram_bench.data.development import CONTROL, FILE, MENTION, OTHERS
from engram_bench.data.items import Item, fill
from engram_bench.data.questions import Question
from engram_bench.data.training import TrainingSet
from engram_bench.variants import Variant

SENTENCES = prompt_sets.read(FILE)
LOOKUP_PHRASINGS, NAMING, TEXTS = SENTENCES[OTHERS], SENTENCES[MENTION], SENTENCES[CONTROL]


@dataclass(frozen=True)
class Trial:
    """Result of one recipe.

    Attributes:
        name: the recipe.
        seconds, steps: of the training; `learned`: whether it ended because the answers were learned.
        parameters: trained numbers.
        loss: of the last epoch, in nats per answer token.
        seen, last, first, middle: shares of exact answers, to trained questions and to `development` ones by position
            of the key.
        recited: share of `naming` prompts in whose answers the stored value stands.
        kl, top1: KL from the untouched model on `TEXTS`, in nats per token; share of tokens whose most probable next
            token stays.
    """

    name: str
    seconds: float
    steps: int
    learned: bool
    parameters: int
    loss: float
    seen: float
    last: float
    first: float
    middle: float
    recited: float
    kl: float
    top1: float


def development(items: Sequence[Item]) -> list[Question]:
    """Ask each item once, with the development sentences in rotation."""
    return [
        Question("rephrased", item, phrasing, fill(phrasing, item.input), (item.output,))
        for n, item in enumerate(items)
        for phrasing in (SENTENCES.get(item.category, LOOKUP_PHRASINGS)[n % 3],)
    ]


def naming(items: Sequence[Item]) -> list[Question]:
    """Name each item's key once, and ask for something else."""
    return [
        Question("mention", item, sentence, fill(sentence, item.input), (item.output,))
        for n, item in enumerate(items)
        for sentence in (NAMING[n % len(NAMING)],)
    ]


def tried(backend: Backend, name: str, variant: Variant, training: TrainingSet, seen: list[Question]) -> Trial:
    """Train a variant from scratch, ask it `seen` and the development questions, and measure its effect elsewhere."""
    items = [question.item for question in seen]
    dev = development(items)
    with tempfile.TemporaryDirectory() as place:
        done = backend.train(variant, training.examples, 0, Path(place), lambda *_: None, replay=training.replay)
        adapter = backend.load_adapter(variant, Path(place))
    with backend.attached(adapter):
        asked = (seen, *(dev[n::3] for n in range(3)))
        rates = [_share(metrics.exact(text, q.item.output) for q, text in _answered(backend, part)) for part in asked]
        recited = _share(metrics.contains(text, q.item.output) for q, text in _answered(backend, naming(items), more=8))
    prompts = [backend.encoder.prompt(text) for text in TEXTS]
    apart = backend.collateral(adapter, list(zip(prompts, backend.generate(prompts, 16), strict=True)))
    return Trial(
        name,
        round(done.seconds, 1),
        done.steps,
        done.ended_early,
        adapter.parameter_count(),
        round(done.losses[-1], 4),
        *rates,
        recited,
        float(f"{apart.kl_mean:.3g}"),
        round(apart.top1_unchanged, 4),
    )


def _answered(backend: Backend, asked: Sequence[Question], more: int = 0) -> Iterator[tuple[Question, str]]:
    """Each question with the greedy answer of the model, with the adapter attached now."""
    longest = 1 + more + max(len(backend.encoder.answer(question.item.output)) for question in asked)
    answers = backend.generate([backend.encoder.prompt(question.prompt) for question in asked], longest)
    return zip(asked, map(backend.encoder.decode, answers), strict=True)


def _share(hits: Iterator[bool]) -> float:
    found = list(hits)
    return round(sum(found) / len(found), 4)


def commit() -> str:
    """The checkout's commit, marked if it has changes."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def saved(file: Path, backend: Backend, trials: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write trials to a results file, with the machine they ran on."""
    header = {
        "machine": f"{platform.machine()}, {backend.device}, {backend.dtype} ({backend.dtype_reason})",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **more,
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**header, "trials": list(trials)}, indent=1) + "\n", "utf-8")


def printed(trial: Trial) -> dict[str, Any]:
    """A trial as a record with the commit it ran on, printed with the time of day (UTC)."""
    record = {**asdict(trial), "commit": commit()}
    print(time.strftime("%H:%M:%S", time.gmtime()), json.dumps(record), flush=True)
    return record
