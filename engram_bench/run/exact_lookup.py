"""Two controls without training: they find the trained pairs by exact key and use the untouched model.

The dictionary answers by itself; retrieval puts the stored answer into the prompt and lets the model reply. If a prompt
contains no trained key, the model gets it unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from engram_bench.data.items import Item

# The best of five wordings: the model repeated the answer most often, on sentences that no suite asks.
WITH_ANSWER = "{prompt}\n\nThe answer is: {output}\nRepeat the answer and nothing else."


@dataclass(frozen=True)
class ExactLookup:
    """Finds `items` by their inputs; `kind` is "dictionary" or "retrieval"."""

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
        """The item whose input occurs in the prompt, the longest if several do; None if none does."""
        found = {match[0] for match in self._keys.finditer(prompt)}
        return self._by_input[max(found, key=len)] if found else None

    def answer(self, prompt: str) -> str | None:
        """The dictionary's answer; None if the model must answer."""
        item = self.item(prompt) if self.kind == "dictionary" else None
        return item.output if item else None

    def prompt(self, prompt: str) -> str:
        """The prompt for the model; retrieval adds the stored answer to it."""
        item = self.item(prompt) if self.kind == "retrieval" else None
        return WITH_ANSWER.format(output=item.output, prompt=prompt) if item else prompt
