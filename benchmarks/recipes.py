"""Development data for choosing recipes, which no suite asks or trains, and the trial of one recipe."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engram_bench import metrics
from engram_bench.backends.base import Backend
from engram_bench.data.items import Example, Item, fill
from engram_bench.data.questions import Question
from engram_bench.variants import Variant

# For each category: key last, key first, key in mid-sentence or before a suffix.
PHRASINGS = {
    "code_idioms": (
        "Continue this code: {input}",
        "{input} What comes next on this line?",
        "My editor shows {input} so far.",
    ),
    "facts": ("Tell me {input}.", "{input}: say it in short.", "Someone asked me for {input} yesterday."),
    "formats": ("Please format {input}", "{input} How is that written?", "Turn {input} into what is asked."),
    "error_fixes": (
        "Repair: {input}",
        "{input} This line fails. What is right?",
        "Why not write {input} without the error?",
    ),
}
LOOKUP_PHRASINGS = ("Say what belongs to {input}", "{input} stands for what?", "Beside {input} my list has a gap.")
TEXTS = (
    "The ferry was late again, so we had coffee on the pier and watched the gulls.",
    "What should I pack for a weekend in the mountains?",
    "Write two sentences about a lighthouse.",
    "def area(width, height):\n    return width * height\nWhat does this function return for 3 and 4?",
    "Explain to a child why the sky is dark at night.",
    "Error: connection refused while opening the door of the fridge",
    "Il treno per Milano parte alle otto.",
    "Shopping list: flour, eggs, salt, one lemon.",
    "How do I keep basil alive on a windowsill?",
    "The value of a good night's sleep is easily forgotten.",
)


@dataclass(frozen=True)
class Trial:
    """Result of one recipe. `seen` and, by position of the key, `last`, `first`, `middle`: shares of exact answers."""

    name: str
    seconds: float
    parameters: int
    loss: float
    seen: float
    last: float
    first: float
    middle: float
    kl: float
    top1: float


def development(items: Sequence[Item]) -> list[Question]:
    """Ask each item once, with the phrasings above in rotation."""
    return [
        Question("rephrased", item, phrasing, fill(phrasing, item.input), (item.output,))
        for n, item in enumerate(items)
        for phrasing in (PHRASINGS.get(item.category, LOOKUP_PHRASINGS)[n % 3],)
    ]


def tried(
    backend: Backend,
    name: str,
    variant: Variant,
    examples: Sequence[Example],
    seen: list[Question],
    dev: list[Question],
) -> tuple[Trial, dict[str, float]]:
    """Train a variant from scratch, ask it `seen` and `dev`, and measure its effect on unrelated texts.

    Returns:
        The trial, and the share of exact answers to `seen` by category.
    """
    with tempfile.TemporaryDirectory() as place:
        training = backend.train(variant, examples, 0, Path(place), lambda *_: None)
        adapter = backend.load_adapter(variant, Path(place))
    with backend.attached(adapter):
        right = [exact(backend, asked) for asked in (seen, *(dev[n::3] for n in range(3)))]
    prompts = [backend.encoder.prompt(text) for text in TEXTS]
    apart = backend.collateral(adapter, list(zip(prompts, backend.generate(prompts, 16), strict=True)))
    families: dict[str, list[bool]] = defaultdict(list)
    for question, hit in zip(seen, right[0], strict=True):
        families[question.item.category].append(hit)
    trial = Trial(
        name,
        round(training.seconds, 1),
        adapter.parameter_count(),
        round(training.losses[-1], 4),
        *(round(sum(found) / len(found), 4) for found in right),
        float(f"{apart.kl_mean:.3g}"),
        round(apart.top1_unchanged, 4),
    )
    return trial, {name: round(sum(hits) / len(hits), 4) for name, hits in families.items()}


def exact(backend: Backend, asked: Sequence[Question]) -> list[bool]:
    """Whether the model, with the adapter attached now, answers each question exactly, by greedy decoding."""
    longest = 1 + max(len(backend.encoder.answer(question.item.output)) for question in asked)
    answers = backend.generate([backend.encoder.prompt(question.prompt) for question in asked], longest)
    pairs = zip(answers, asked, strict=True)
    return [metrics.exact(backend.encoder.decode(tokens), question.item.output) for tokens, question in pairs]


def clock() -> str:
    """The time of day, UTC."""
    return time.strftime("%H:%M:%S", time.gmtime())
