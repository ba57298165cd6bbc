"""What needs no training: the trained pairs kept beside the untouched model and found by their exact keys.

Two controls that a memory has to be seen against: a dictionary, which answers by itself, and retrieval, which puts the
answer into the prompt and leaves the reply to the model. Where no key is found the model is asked as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from engram_bench.data.items import Item

# Of five wordings the one after which the model said the answer most often, in sentences no suite asks.
WITH_ANSWER = "{prompt}\n\nThe answer is: {output}\nRepeat the answer and nothing else."


@dataclass(frozen=True)
class ExactLookup:
    """The pairs of `items`, and how they are used: `kind` is "dictionary" or "retrieval"."""

    kind: str
    items: tuple[Item, ...]

    @cached_property
    def _by_input(self) -> dict[str, Item]:
        return {item.input: item for item in self.items}

    @cached_property
    def _keys(self) -> re.Pattern[str]:
        longest_first = sorted(self._by_input, key=len, reverse=True)
        return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")

    def item(self, prompt: str) -> Item | None:
        """The pair whose input stands in a prompt, the longest one where several do; None where none does."""
        found = {match[0] for match in self._keys.finditer(prompt)}
        return self._by_input[max(found, key=len)] if found else None

    def answer(self, prompt: str) -> str | None:
        """What the dictionary says, or None: the model is to be asked."""
        item = self.item(prompt) if self.kind == "dictionary" else None
        return item.output if item else None

    def prompt(self, prompt: str) -> str:
        """What the model is asked."""
        item = self.item(prompt) if self.kind == "retrieval" else None
        return WITH_ANSWER.format(output=item.output, prompt=prompt) if item else prompt
