"""A memory and a LoRA that train together: what the frameworks' adapters share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from engram_bench.prompts import Pair, PromptEncoder
from engram_bench.variants.configs import EngramLoraConfig


class Together:
    """A framework's memory and its LoRA, saved side by side, each in its own format.

    `acts_on_text` is the memory's: it tells which tokens read n-grams. The LoRA acts on all tokens.

    Attributes:
        parts: the framework's adapter classes of the memory and of the LoRA.
    """

    acts_on_template = True
    parts: ClassVar[tuple[Any, Any]]

    def __init__(self, memory: Any, lora: Any) -> None:
        self.memory, self.lora = memory, lora
        self.ngram_size, self.acts_on_text = memory.ngram_size, memory.acts_on_text
        self.span, self.found, self.gates, self.train = memory.span, memory.found, memory.gates, memory.train
        self.memories, self.windows = memory.memories, memory.windows

    @classmethod
    def create(cls, model: Any, config: EngramLoraConfig, encoder: PromptEncoder, pairs: Sequence[Pair]) -> Self:
        """See `base.AdapterClass.create`."""
        memory, lora = cls.parts
        return cls(memory.create(model, config.memory, encoder, pairs), lora.create(model, config.lora, encoder, pairs))

    @classmethod
    def load(cls, model: Any, config: EngramLoraConfig, encoder: PromptEncoder, folder: Path) -> Self:
        """See `base.AdapterClass.load`."""
        memory, lora = cls.parts
        return cls(memory.load(model, config.memory, encoder, folder), lora.load(model, config.lora, encoder, folder))

    def parameter_count(self) -> int:
        """See `base.Adapter.parameter_count`."""
        return int(self.memory.parameter_count() + self.lora.parameter_count())

    def save(self, folder: Path) -> None:
        """See `base.Adapter.save`."""
        self.memory.save(folder)
        self.lora.save(folder)
