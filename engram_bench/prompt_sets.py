"""Prompts beside the patterns: controls, which no adapter should change, and labelled prompts for a router.

Files under ``patterns/prompts/`` hold ``prompts: {kind: [text, ...]}``; the text stays as it is written.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from engram_bench.errors import UsageError
from engram_bench.options import ROOT

FOLDER = ROOT / "patterns" / "prompts"


@dataclass(frozen=True)
class RoutingPrompt:
    """A prompt, and whether it asks for an item; `kind`: the item's category, or what it is made to look like."""

    text: str
    kind: str
    asks: bool


def control(each: int | None = None, seed: int = 0) -> list[str]:
    """Prompts that share no key with any pattern: prose, questions, chat, code, other languages.

    Args:
        each: so many of each kind, drawn by seed; None: all.
        seed: another seed, another choice.
    """
    kinds = read(FOLDER / "control.yaml")
    if each is None:
        return [text for texts in kinds.values() for text in texts]
    drawn = [random.Random(f"{seed}:{kind}").sample(texts, each) for kind, texts in kinds.items()]
    return [text for one_of_each in zip(*drawn, strict=True) for text in one_of_each]


def routing() -> list[RoutingPrompt]:
    """Labelled prompts: those that ask for an item, each of a trained one, and those that only look as if they did."""
    files = {True: "routing_positive.yaml", False: "routing_negative.yaml"}
    return [
        RoutingPrompt(text, kind, asks)
        for asks, name in files.items()
        for kind, texts in read(FOLDER / name).items()
        for text in texts
    ]


def read(file: Path) -> dict[str, list[str]]:
    """Texts by kind.

    Raises:
        UsageError: the file is missing or holds something else.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
        return {kind: list(texts) for kind, texts in content["prompts"].items()}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: not a file of prompts ({error}); restore it from the repository") from error
