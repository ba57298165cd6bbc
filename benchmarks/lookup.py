"""Time of a memory's look-up against rows held, keys known and prompt length, without a model's forward.

The tables are filled, and every prompt is running text in which known keys occur. A look-up has three parts: finding a
key in the text, hashing each token's n-grams and searching for their rows, and gathering these rows. Every token of a
prompt reads its n-grams here, which is the most that a memory can ask for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_bench import variants
from engram_bench.data import patterns, prompt_sets
from engram_bench.memory.addresses import Addresses, key_tokens, make_hasher, slots
from engram_bench.memory.hashing import Int64Array
from engram_bench.memory.keys import KeyIndex, key_name
from engram_bench.prompts import Prompt, PromptEncoder, Span, ngram_windows
from engram_bench.shipped import PATTERNS
from engram_bench.variants.configs import EngramConfig

ROWS = (10_000, 100_000, 1_000_000, 10_000_000)  # held by one layer, in all its tables together
KEYS = (100, 1_000, 10_000, 100_000)
TOKENS = (16, 64, 256, 1_024, 2_048)
BASE = {"rows": 1_000_000, "keys": 1_000, "tokens": 256}  # what a point has of the sizes that it does not vary
PROMPTS, ROUNDS = 8, 15  # timings of a point: each prompt in each round
LONGEST_KEY = 10  # tokens, so that the shortest prompt holds a key
SYLLABLES = (
    "bra",
    "cel",
    "dor",
    "fen",
    "gal",
    "hov",
    "ist",
    "jun",
    "kel",
    "lur",
    "mar",
    "nox",
    "orv",
    "pel",
    "qua",
    "rin",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

Sizes = dict[str, int]
T = TypeVar("T")


def known_keys(count: int, seed: int = 0) -> list[str]:
    """Keys of the shipped patterns, drawn by seed; beyond those, keys of the same two forms with invented names."""
    rng, shipped = random.Random(seed), patterns.load(PATTERNS)
    every = [item.input for category in shipped.categories.values() for item in category.items]
    keys = dict.fromkeys(rng.sample(every, min(count, len(every))))
    world = shipped.categories["world"].items
    nouns = sorted({item.input.replace(item.names[0], "{}") for item in world if item.names[0] in item.input})
    while len(keys) < count:
        name = "".join(rng.choices(SYLLABLES, k=3)).capitalize()
        keys[rng.choice(nouns).format(f"{name}-{''.join(rng.choices(LETTERS, k=3))}")] = None
        keys[f"SYN:{''.join(rng.choices(LETTERS, k=6))}"] = None
    return list(keys)[:count]


def running_text(keys: Sequence[str], rng: random.Random) -> str:
    """A question for a key, then all passages of the shipped data with keys in them, in random order."""
    texts = [text for some in prompt_sets.read(prompt_sets.FOLDER / "passages.yaml").values() for text in some]
    rng.shuffle(texts)
    whole = "\n\n".join(texts)
    filled = "".join(part + rng.choice(keys) for part in whole.split("{input}"))
    return f"What is {rng.choice(keys)}? {filled}"


def prompt_of(encoder: PromptEncoder, keys: Sequence[str], tokens: int, rng: random.Random) -> Prompt:
    """A prompt of about so many tokens of running text; it begins with a question for a key."""
    text = running_text(keys, rng)
    while len((prompt := encoder.prompt(text)).places) < tokens:
        text += f"\n\n{running_text(keys, rng)}"
    return encoder.prompt(text[: prompt.places[tokens - 1][1]])


@dataclass(frozen=True)
class Memory:
    """One layer's memory with every row of its tables held and filled.

    Attributes:
        addresses: its hash functions, keys and rows.
        table: float32 [1 + rows, width].
    """

    addresses: Addresses
    table: NDArray[np.float32]


def filled(config: EngramConfig, compressed_ids: Int64Array, mark: int, rows: int) -> Memory:
    """A memory of about `rows` rows that knows no key yet."""
    sized = replace(config, rows=rows // (config.hashes * config.heads))
    hasher = make_hasher(sized, compressed_ids, mark)
    (layer,) = sized.layer_ids
    count = sum(map(sum, hasher.primes[layer]))
    table = np.random.default_rng(0).standard_normal((1 + count, sized.width), dtype=np.float32)
    unsaved = np.empty(0, np.uint8)  # in place of what tells a saved memory's tokenizer
    return Memory(Addresses(sized, hasher, mark, KeyIndex(), {layer: np.arange(count)}, unsaved), table)


def look_up(memory: Memory, prompt: Prompt) -> dict[str, float]:
    """Seconds of each part for a whole prompt, and of hashing, search and gathering for one more token.

    "accented" is the time to find a key in the same text with an accent in it: such a text is split letter by letter.
    "direct" is that of hashing and gathering without a search, which a table with all its rows does not need.

    Raises:
        ValueError: the prompt holds no known key, or a row is not stored.
    """
    addresses, layer, table = memory.addresses, memory.addresses.last, memory.table
    hasher, held, size = addresses.hasher, addresses.rows[layer], max(addresses.config.orders)
    find, span = timed(lambda: addresses.span(prompt))
    if span is None:
        raise ValueError(f"no key is found in {prompt.text[:60]!r}")
    accented, _ = timed(lambda: addresses.keys.find(f"\u00e9 {prompt.text}"))
    content = prompt.content_ids()
    every = Span(0, len(content), tuple(content.tolist()), span.key)
    windows = ngram_windows(prompt, (), size, every, addresses.mark, on_text=True)[np.flatnonzero(prompt.content)]
    hashed, places = timed(lambda: slots(hasher, layer, held, windows))
    gathered, rows = timed(lambda: table[places])
    direct, same = timed(lambda: table[slots(hasher, layer, None, windows)])
    if not (places[-1].all() and np.array_equal(rows, same)):
        raise ValueError("a row that the hash names is not stored")
    step, _ = timed(lambda: table[slots(hasher, layer, held, windows[-1:])])
    return {"find": find, "accented": accented, "hash": hashed, "gather": gathered, "direct": direct, "step": step}


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def points() -> list[tuple[str, Sizes]]:
    """What varies, and the sizes of each point."""
    return [
        (name, {**BASE, name: size})
        for name, sizes in (("rows", ROWS), ("keys", KEYS), ("tokens", TOKENS))
        for size in sizes
    ]


def measure(
    encoder: PromptEncoder, compressed_ids: Int64Array, wanted: Sequence[tuple[str, Sizes]], rounds: int = ROUNDS
) -> Mapping[str, list[dict[str, float]]]:
    """Median seconds by what varies; the points take turns, so that a slower phase of the machine affects all.

    Returns:
        One dictionary per point: its sizes; "find_s", "hash_s" and "gather_s", per token of the prompt; "seconds", of
        all three; "accented_s": "find_s" where the text has an accent; "direct_s": hashing and gathering without a
        search; "step_s": hashing, search and gathering for a single token, as in decoding.
    """
    (_, variant) = variants.select("engram-keyed")
    assert isinstance(variant.config, EngramConfig)
    config = replace(variant.config, layers=[0])
    known = known_keys(max(sizes["keys"] for _, sizes in wanted))
    tokens = {key: key_tokens(key, encoder) for key in known}
    indexes = {
        count: KeyIndex({key_name(key): tokens[key] for key in known[:count]})
        for count in {sizes["keys"] for _, sizes in wanted}
    }
    tables = {
        rows: filled(config, compressed_ids, encoder.eos_id, rows) for rows in {sizes["rows"] for _, sizes in wanted}
    }
    asked = []
    for _, sizes in wanted:
        rng, table = random.Random(0), tables[sizes["rows"]]
        short = [key for key in known[: sizes["keys"]] if len(tokens[key]) <= LONGEST_KEY and key.isascii()]
        memory = replace(table, addresses=replace(table.addresses, keys=indexes[sizes["keys"]]))
        asked.append((memory, [prompt_of(encoder, short, sizes["tokens"], rng) for _ in range(PROMPTS)]))
    times: list[list[dict[str, float]]] = [[] for _ in wanted]
    for turn in range(1 + rounds):
        for own, (memory, prompts) in zip(times, asked, strict=True):
            for prompt in prompts:
                took, count = look_up(memory, prompt), len(prompt.places)
                if turn:  # the first one loads the rows
                    own.append({name: s if name == "step" else s / count for name, s in took.items()})
    found: dict[str, list[dict[str, float]]] = {}
    for (name, sizes), own in zip(wanted, times, strict=True):
        parts = {f"{part}_s": float(np.median([took[part] for took in own])) for part in own[0]}
        whole = float(np.median([took["find"] + took["hash"] + took["gather"] for took in own]))
        found.setdefault(name, []).append({**sizes, "seconds": whole, **parts})
    return found
