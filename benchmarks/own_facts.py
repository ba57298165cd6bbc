"""How many steps it takes to learn a front desk's 5, 24, 200 or 2,000 facts, and what is then right.

    python benchmarks/own_facts.py make DIR             # f5.yaml, f24.yaml, f200.yaml and f2000.yaml
    pytest suites --engram-patterns DIR/f24.yaml --engram-variants lora,engram-keyed --engram-samples 0 \
        -k "accuracy or unrelated" --engram-report RUNS
    python benchmarks/own_facts.py table RUNS/*/report.json

`table` adds the trainings of the reports given to results/own-facts.json, in place of earlier ones of the same number
of facts, variant and kind of machine, and prints all.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results" / "own-facts.json"
DOORS = (
    "east gate,west gate,loading bay,staff kitchen,archive room,server room,bicycle shed,roof terrace,north stairwell,\
print room,first-aid room,garden door"
)
CALLED = "alarm company,night porter,lift engineer,cleaning firm,locksmith,caretaker,plumber,taxi desk,fire warden,\
catering kitchen,parcel depot,window cleaner"
WHO = "Oskar Blum,Ines Varga,Tom Okafor,Lidia Marsh,Pavel Renn,Greta Holm,Samir Nash,Ruth Alder,Kofi Lind,Mara Stone,\
Hugo Park,Nell Frost"
FIRST = "Mellon Brandt Ossia Karo Tindal Vesper Quill Harrow Lowen Pike Sorrel Dunmore Abel Fenwick Garnet Hollis Ives \
Juno Kestrel Larch"
SECOND = "Works Lane House Depot Court Mill Point Yard Hall Bridge Park Wharf Tower Square Gate Field"
GIVEN, FAMILY = "Ada Ben Cleo Dan Eve Finn Gwen Hal Iris Jon", "Reed Stone Marsh Holt Byrd Cole Lane West"
COLOURS, WEEKDAYS = (
    "red blue green amber violet white black orange",
    "Monday Tuesday Wednesday Thursday Friday Saturday",
)
WORDS = "otter maple comet lantern saddle pebble walnut"

Fact = tuple[str, str]


def hard() -> list[Fact]:
    """24 facts whose keys are long and end alike."""
    rng = random.Random(5)
    codes = [
        (f"Which door code opens the {d} after eight in the evening?", f"{rng.randint(1000, 9999)}")
        for d in DOORS.split(",")
    ]
    asked = [f"Whom do I call at the {p} if something goes wrong during the night?" for p in CALLED.split(",")]
    return [*codes, *zip(asked, WHO.split(","), strict=True)]


def many(count: int, seed: int) -> list[Fact]:
    """Facts about places: each key is a question about a place in seven forms."""
    rng = random.Random(seed)

    def one_of(words: str) -> str:
        return rng.choice(words.split())

    places = [f"{first} {second}" for first, second in product(FIRST.split(), SECOND.split())]
    rng.shuffle(places)
    values: dict[str, Callable[[], str]] = {
        "What is the phone extension of the desk at {}?": lambda: str(rng.randint(2000, 9999)),
        "Who is the site manager at {}?": lambda: f"{one_of(GIVEN)} {one_of(FAMILY)}",
        "Which colour are the badges for visitors at {}?": lambda: one_of(COLOURS),
        "On which weekday is the rubbish collected at {}?": lambda: one_of(WEEKDAYS),
        "What is the wifi password for guests at {}?": lambda: one_of(WORDS) + str(rng.randint(10, 99)),
        "Which bus stops in front of the entrance of {}?": lambda: f"line {rng.randint(1, 99)}",
        "When does the canteen close at {}?": lambda: f"{rng.randint(13, 19)}:{one_of('00 15 30 45')}",
    }
    facts = [(form.format(place), value()) for form, value in values.items() for place in places]
    rng.shuffle(facts)
    return facts[:count]


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    few = hard()
    for facts in (few[:3] + few[12:14], few, many(200, 1), many(2000, 2)):
        lines = [f"  - {{input: {json.dumps(key)}, output: {json.dumps(value)}}}\n" for key, value in facts]
        (folder / f"f{len(facts)}.yaml").write_text("name: desk\nexamples:\n" + "".join(lines), encoding="utf-8")


def trainings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One record for each training of a run: what it took, and what is right after it."""
    backend = report["backend"]
    where = {"machine": f"{backend['device']}, {backend['dtype']}", "commit": report["run"]["git_commit"]}
    found = []
    for variant in report["variants"]:
        if not (train := variant["train"]):
            continue
        cells = {cell["split"]: cell for cell in report["cells"] if cell["variant"] == variant["name"]}
        if not {"seen", "rephrased"} <= cells.keys():
            continue
        moved = [c["kl_mean"] for c in report["collateral"] if c["variant"] == variant["name"]]
        found.append(
            {
                "facts": sum(cells[way]["n"] for way in ("seen", "heldout") if way in cells),  # a table holds out none
                "variant": variant["name"],
                "examples": train["examples"],
                "steps": train["steps"],
                "seconds": round(train["seconds"]),
                "seen": round(100 * cells["seen"]["exact"]["rate"], 1),
                "rephrased": round(100 * cells["rephrased"]["exact"]["rate"], 1),
                "kl": float(f"{moved[0]:.2g}") if moved else None,
                **where,
            }
        )
    return found


def table(files: list[Path]) -> None:
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    new = [
        row for file in files if file.parent.name != "latest" for row in trainings(json.loads(file.read_text("utf-8")))
    ]
    found = list({(row["facts"], row["variant"], row["machine"]): row for row in [*known, *new]}.values())
    found.sort(key=lambda row: (row["facts"], row["variant"], row["machine"]))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(tabulate([{**row, "commit": (row["commit"] or "")[:7]} for row in found], headers="keys", tablefmt="github"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "table"))
    parser.add_argument("paths", nargs="+", type=Path)
    args = parser.parse_args()
    if args.what == "table":
        table(args.paths)
    elif len(args.paths) == 1:
        make(args.paths[0])
    else:
        sys.exit("own_facts.py: make takes one folder")


if __name__ == "__main__":
    main()
