"""Which n-gram each token reads, for a memory with ``span: all``: the one that ends at it, whatever text it is in.

So no template has to be found, and the rule is the same for raw text and for a chat. `memory.reading` has the rule for
memories that read a part of the text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_bench.memory.addresses import Addresses
from engram_bench.memory.reading import ID, PADDING, Numbers, Row
from engram_bench.prompts import ABSENT, PromptEncoder, extend_windows


class WholeText:
    """Like `reading.Reading`; the numbers that are known after a token are its id and the n-gram that it reads.

    Args:
        encoder: the encoder that the memory was trained with.
        addresses: the memory's rows.
    """

    reach = 1

    def __init__(self, encoder: PromptEncoder, addresses: Addresses) -> None:
        self.size = max(addresses.config.orders)
        self.start = [PADDING, *[encoder.eos_id] * self.size, ABSENT]

    def read(self, row: Row, token: int) -> Numbers:
        """See `reading.Reading.read`."""
        window = [token, *row.now[ID + 1 : -2], ABSENT]
        row.ids.append(token)
        row.add([token, *window])
        return window

    def step(
        self, last: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """See `reading.Reading.step`."""
        windows = extend_windows(last[:, ID + 1 :], tokens)
        return windows, np.concatenate([tokens[:, None], windows], axis=1), last[:, ID] == PADDING
