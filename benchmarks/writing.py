"""Write facts into a trained memory one after another: time per fact, recall in other words, effect on other texts.

``engram-bench train engram-keyed --out DIR; python benchmarks/writing.py DIR [--facts 100]``. Half of the facts have
phrases as keys (the locker code of Ada), half have random keys; none is in any pattern file. The folder stays as it is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import string
from pathlib import Path

from recipes import LOOKUP_PHRASINGS, TEXTS

from engram_bench import backends, metrics
from engram_bench.data.items import fill
from engram_bench.store import models

OWNERS = ("Ada", "Bo", "Cleo", "Dov", "Esme", "Finn", "Greta", "Hugo", "Iris", "Jon", "Kit", "Lena", "Milo", "Nora")
THINGS = ("locker code", "home town", "favourite tea", "boat's name")
VALUES = ("Lisbon", "Oslo", "Quito", "sencha", "rooibos", "Earl Grey", "4711", "2093", "Sea Breeze", "Blue Heron")


def invented(count: int) -> dict[str, str]:
    """Invent `count` facts that no model can know."""
    rng = random.Random(0)
    owned = [f"the {thing} of {owner}" for owner, thing in itertools.product(OWNERS, THINGS)][: count // 2]
    facts = {key: rng.choice(VALUES) for key in owned}
    while len(facts) < count:
        key = "FACT:" + "".join(rng.choices(string.ascii_lowercase + string.digits, k=6))
        facts[key] = "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(3))
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--facts", type=int, default=100)
    args = parser.parse_args()
    model = backends.find("cpu").load(models.resolve("bundled").folder)
    memory, facts = model.load_writable(args.adapter), invented(args.facts)
    prompts = [model.encoder.prompt(text) for text in TEXTS]
    texts = list(zip(prompts, model.generate(prompts, 16), strict=True))

    def recalled(phrasing: str) -> float:
        keys = list(memory.facts)
        with model.attached(memory.adapter):
            answers = model.generate([model.encoder.prompt(fill(phrasing, key)) for key in keys], 16)
        said = zip(map(model.encoder.decode, answers), keys, strict=True)
        return sum(metrics.exact(answer, facts[key]) for answer, key in said) / len(keys)

    written = [memory.write(key, value) for key, value in facts.items()]
    seconds = [each.seconds for each in written]
    found = {phrasing: recalled(phrasing) for phrasing in ("{input}", *LOOKUP_PHRASINGS)}
    apart = model.collateral(memory.adapter, texts)
    for key in list(facts)[::2]:
        memory.forget(key)
    print(
        json.dumps(
            {
                "facts": len(facts),
                "seconds": {"median": round(statistics.median(seconds), 2), "most": round(max(seconds), 2)},
                "in less than a second": sum(each < 1 for each in seconds),
                "steps": statistics.median(each.steps for each in written),
                "recalled": found,
                "recalled once every other one is forgotten": recalled("{input}"),
                "kl_max": apart.kl_max,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
