"""Several runs beside one of them, the reference: opens their reports, pairs their answers, finds items that flipped.

A cell here is a variant and a way of asking, over all categories. An item of it is named by its category and its id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from engram_bench import stats
from engram_bench.data.ways import WAYS
from engram_bench.records import SAMPLES, Record
from engram_bench.report import gate
from engram_bench.report.views import by_construction

RIGHT, WRONG = 1.0, 0.0  # by the answers of every training seed, and by none
MEND = "name the folder of a run, or its report.json"

Cell = tuple[str, str]  # variant, way of asking
Item = tuple[str, str]  # category, id


class Run(NamedTuple):
    """A run to compare.

    Attributes:
        name: of its folder, short and unique among the runs, see `names`.
        report: its report.json.
        samples: where its answers are if the whole folder was kept.
    """

    name: str
    report: Record
    samples: Path


class Flip(NamedTuple):
    """An item that is right in one run and wrong in another.

    Attributes:
        cell: variant and way.
        item: category and id.
        shares: of right answers over training seeds, by run; None where the run did not answer it.
    """

    cell: Cell
    item: Item
    shares: tuple[float | None, ...]


def opened(paths: Sequence[Path]) -> list[Run]:
    """Read and name the reports of runs.

    Raises:
        BaselineError: one of them is missing or is no report.
    """
    files = [path / "report.json" if path.is_dir() else path for path in paths]
    reports = [gate.read(file, MEND) for file in files]
    return [Run(*found) for found in zip(names(files), reports, [f.parent / SAMPLES for f in files], strict=True)]


def names(files: Sequence[Path]) -> list[str]:
    """Name each report by its folder, or by the file if that is not report.json; the same file twice gets a number.

    Folders above are part of a name only if the folder is not unique, and what all runs share at the end never is.
    """
    found: list[str] = []
    places = [_place(file) for file in files]
    while len(set(places)) > 1 and len({place[-1] for place in places}) == 1:
        places = [place[:-1] for place in places]
    for i, place in enumerate(places):
        others = [other for other in places if other != place]
        ends = (place[-n:] for n in range(1, len(place) + 1))
        end = next((end for end in ends if all(other[-len(end) :] != end for other in others)), place)
        twice = places[:i].count(place)
        found.append("/".join(end) + (f" ({twice + 1})" if twice else ""))
    return found


def _place(file: Path) -> tuple[str, ...]:
    file = file.resolve()  # "latest" is another run tomorrow
    return (file.parent if file.name == "report.json" else file.with_suffix("")).parts


def refuse(runs: Sequence[Run], paths: Sequence[Path]) -> None:
    """Raise if a run does not compare with the first, the reference.

    Raises:
        BaselineError: a run was interrupted, its report is partial, or it has another model, data, training questions,
            prompt or schema than the reference; the message names the run and what differs.
    """
    reference = gate.fingerprints(runs[0].report)
    for run, path in zip(runs, paths, strict=True):
        gate.refuse(run.report, reference, str(path), mend="leave it out", ours="in the first run")


def variants(runs: Sequence[Run]) -> list[str]:
    """Names of the variants of all runs, in the order in which they first appear."""
    return list(dict.fromkeys(variant["name"] for run in runs for variant in run.report["variants"]))


def answers(report: Record) -> dict[Cell, dict[Item, float]]:
    """Share of right answers over training seeds, by cell and item."""
    found: dict[Cell, dict[Item, float]] = {}
    for outcome in report["outcomes"]:
        items = {(outcome["category"], item): share for item, share in outcome["items"].items()}
        found.setdefault((outcome["variant"], outcome["split"]), {}).update(items)
    return found


def _cells(runs: Sequence[Run], asked: Sequence[Collection[Cell]]) -> list[Cell]:
    """The cells that a run asked, but for those that a definition decides."""
    every = [(variant, way) for variant in variants(runs) for way in WAYS if not by_construction(variant, way)]
    return [cell for cell in every if any(cell in cells for cells in asked)]


def differences(runs: Sequence[Run], margin: float) -> list[Record]:
    """Compare every cell of each run with the reference, paired on the items both answered; Holm covers all.

    Args:
        runs: the reference, then the others.
        margin: a significant drop beyond it is a regression, as a share.

    Returns:
        A record per cell and run: variant, split, run, the rates before (reference) and after, what
        `stats.Comparison` has, verdict. None for a cell without a common item.
    """
    reference, *others = [answers(run.report) for run in runs]
    pairs: dict[tuple[Cell, str], stats.Paired] = {}
    for cell in _cells(runs, [reference]):
        for run, found in zip(runs[1:], others, strict=True):
            old, new = reference[cell], found.get(cell, {})
            if items := sorted(old.keys() & new.keys()):
                pairs[cell, run.name] = stats.Paired([old[i] for i in items], [new[i] for i in items])
    compared = zip(pairs.items(), stats.compare_all(list(pairs.values())), strict=True)
    return [
        {
            **{"variant": variant, "split": way, "run": name},
            **{"before": sum(pair.a) / result.n, "after": sum(pair.b) / result.n},
            **result.as_record(),
            "identical": result.identical,
            "verdict": gate.verdict(result, margin),
        }
        for (((variant, way), name), pair), result in compared
    ]


def flips(runs: Sequence[Run]) -> tuple[dict[Cell, int], list[Flip]]:
    """Items that are right in one run and wrong in another: by every training seed of the one, by none of the other.

    Returns:
        How many items of each cell two runs or more answered, and the flips, in the order of the cells.
    """
    asked = [answers(run.report) for run in runs]
    common: dict[Cell, int] = {}
    found: list[Flip] = []
    for cell in _cells(runs, asked):
        items = sorted({item for by_cell in asked for item in by_cell.get(cell, ())})
        shares = {item: tuple(by_cell.get(cell, {}).get(item) for by_cell in asked) for item in items}
        common[cell] = sum(len(runs) - of.count(None) > 1 for of in shares.values())
        found += [Flip(cell, item, of) for item, of in shares.items() if RIGHT in of and WRONG in of]
    return common, found


def picked(flipped: Sequence[Flip], most: int) -> list[Flip]:
    """At most so many flips, taken from the cells in turns, in the order of the cells."""
    turns = {cell: count() for cell, _, _ in flipped}
    ranked = [(next(turns[flip.cell]), i) for i, flip in enumerate(flipped)]
    return [flipped[i] for i in sorted(i for _, i in sorted(ranked)[:most])]
