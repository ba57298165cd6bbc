"""Ask a model with a trained adapter: one prompt as a stream of text, or many prompts together."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engram_bench.backends.base import Adapter, Backend
from engram_bench.errors import UsageError

INCOMPLETE = "\ufffd"  # stands where the bytes of a character are not complete yet


def streamed(model: Backend, adapter: Adapter | None, prompt: str, most: int) -> Iterator[str]:
    """Yield the greedy answer of at most `most` tokens piece by piece; a character of several tokens comes whole."""
    ids: list[int] = []
    shown = 0
    with model.attached(adapter):
        for token in model.stream(model.encoder.prompt(prompt), most):
            ids.append(token)
            text = model.encoder.decode(ids)
            if not text.endswith(INCOMPLETE):
                yield text[shown:]
                shown = len(text)
    yield model.encoder.decode(ids)[shown:]


def lines(model: Backend, adapters: Mapping[str, Adapter | None], prompts: Sequence[str], most: int) -> Iterator[str]:
    """Yield a JSON object for each prompt: `prompt`, `answer` and, if the untouched model is asked, `baseline`."""
    encoded = [model.encoder.prompt(prompt) for prompt in prompts]
    found = {}
    for name, adapter in adapters.items():
        with model.attached(adapter):
            answers = model.generate(encoded, most)
        found["answer" if adapter else name] = [model.encoder.decode(ids) for ids in answers]
    for n, prompt in enumerate(prompts):
        yield json.dumps({"prompt": prompt, **{name: texts[n] for name, texts in found.items()}}, ensure_ascii=False)


def read(file: str) -> list[str]:
    """The lines of a file in UTF-8 that are not blank; "-" is standard input.

    Raises:
        UsageError: the file cannot be read, or holds nothing to ask.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts: {file}: {error}; give a text file in UTF-8") from error
    found = [line for line in text.splitlines() if line.strip()]
    if not found:
        raise UsageError(f"--prompts: {file}: no prompts; write one a line")
    return found
