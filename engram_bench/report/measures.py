"""What answers amount to, item by item and cell by cell; pure functions of lines of samples.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engram_bench import metrics, stats
from engram_bench.data.ways import PHRASED, VALUED
from engram_bench.records import GREEDY, REPEAT, CellKey, Record

DRAWN_IN = "seen"  # the way in which answers are drawn; a cell of it holds the consistency over all `PHRASED` ways


def phrased(cells: Mapping[CellKey, Sequence[Record]]) -> dict[CellKey, list[Record]]:
    """Map each cell of seen items to the same items' answers in all `PHRASED` ways, for `consistency`."""
    return {
        cell: [sample for way in PHRASED for sample in cells.get(cell._replace(split=way), ())]
        for cell in cells
        if cell.split == DRAWN_IN
    }


def greedy(samples: Iterable[Record]) -> list[Record]:
    """The greedy answers, without their repeats."""
    return [s for s in samples if s["sample"] == GREEDY]


def _means(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Map each item to the mean of its numbers."""
    by_item: dict[str, list[float]] = {}
    for item, number in found:
        by_item.setdefault(item, []).append(number)
    return {item: sum(numbers) / len(numbers) for item, numbers in sorted(by_item.items())}


def outcomes(samples: Iterable[Record]) -> dict[str, float]:
    """Map each item to the share of its greedy answers (one per training seed) that are exact."""
    return _means((s["item"], s["exact"]) for s in greedy(samples))


def consistency(samples: Iterable[Record]) -> dict[str, float]:
    """Map each item to the share of its answers, greedy and drawn at temperature 0.8, that are exact.

    Exact answers are equal, so this counts the answers that are right and agree. Leaves out items for which no training
    seed drew two answers or more.

    Args:
        samples: answers to the same items in every way of `PHRASED` that was asked, see `phrased`.
    """
    counted = [s for s in samples if s["sample"] >= GREEDY]
    drawn = _drawn(counted)
    return {item: share for item, share in _means((s["item"], s["exact"]) for s in counted).items() if item in drawn}


def agreement(samples: Iterable[Record]) -> dict[str, float]:
    """Map each item to the share of its most common answer, right or wrong, among those drawn at temperature 0.8.

    Averages over training seeds. Leaves out items with fewer than two drawn answers.
    """
    return {
        item: sum(map(metrics.agreement, by_seed)) / len(by_seed) for item, by_seed in sorted(_drawn(samples).items())
    }


def _drawn(samples: Iterable[Record]) -> dict[str, list[list[str]]]:
    """Map each item to its drawn outputs, of each training seed that drew two or more."""
    by_seed: dict[tuple[str, int], list[str]] = {}
    for s in samples:
        if s["sample"] > GREEDY:
            by_seed.setdefault((s["item"], s["seed"]), []).append(s["output"])
    by_item: dict[str, list[list[str]]] = {}
    for (item, _), outputs in by_seed.items():
        if len(outputs) > 1:
            by_item.setdefault(item, []).append(outputs)
    return by_item


MEASURES = {"exact": outcomes, "consistency": consistency}  # metrics in which variants are compared


def cell(name: CellKey, samples: Sequence[Record], phrasings: Sequence[Record]) -> Record:
    """A cell of report.json.

    Args:
        name: of the cell.
        samples: its answers.
        phrasings: the same items' answers in all ways of `PHRASED`, see `phrased`; empty for cells of other ways.
    """
    prefix = _means((s["item"], s["prefix"]) for s in greedy(samples))
    other_form = _means((s["item"], metrics.value_only(s["output"], s["expected"])) for s in greedy(samples))
    drawn, agreed = consistency(phrasings), agreement(samples)
    return {
        **name._asdict(),
        "n": len({s["item"] for s in samples}),
        "exact": _rate(outcomes(samples)),
        "prefix": _rate(prefix),
        "value_only": _rate(other_form) if name.split in VALUED else None,
        "consistency": {"n": len(drawn), **_mean(drawn)} if drawn else None,
        "agreement": {"n": len(agreed), **_mean(agreed)} if agreed else None,
        "greedy_repeats": _repeats(samples),
        "token_efficiency": token_efficiency(samples),
    }


def _rate(shares: Mapping[str, float]) -> Record:
    return stats.rate(sum(shares.values()), len(shares))


def _mean(shares: Mapping[str, float]) -> Record:
    interval = stats.mean(list(shares.values()))
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def _repeats(samples: Sequence[Record]) -> Record | None:
    """Share of items whose repeated greedy answer is the same text for every training seed; None without repeats."""
    first = {(s["item"], s["seed"]): s["output"] for s in greedy(samples)}
    same: dict[str, bool] = {}
    for s in samples:
        if s["sample"] == REPEAT:
            same[s["item"]] = same.get(s["item"], True) and s["output"] == first.get((s["item"], s["seed"]))
    if not same:
        return None
    interval = stats.wilson(sum(same.values()), len(same))
    return {"n": len(same), "same": interval.value, "low": interval.low, "high": interval.high}


def prompts_counted(samples: Sequence[Record]) -> bool:
    """Whether every answer records the tokens of its prompt; those of older versions do not."""
    return bool(samples) and all(s.get("prompt_tokens") is not None for s in samples)


def spent(sample: Record, prompts: bool) -> int:
    """Tokens of an answer, and of its prompt if `prompts`."""
    found: int = sample["tokens"] + (sample["prompt_tokens"] if prompts else 0)
    return found


def token_efficiency(samples: Sequence[Record]) -> Record:
    """Canonical tokens of the right greedy answers over all tokens spent on all greedy answers, prompts included.

    The interval resamples items.
    """
    answers, useful, total = greedy(samples), dict[str, int](), dict[str, int]()
    prompts = prompts_counted(answers)
    for s in answers:
        useful[s["item"]] = useful.get(s["item"], 0) + (s["canonical_tokens"] if s["exact"] else 0)
        total[s["item"]] = total.get(s["item"], 0) + spent(s, prompts)
    items = sorted(total)
    interval = stats.ratio([useful[item] for item in items], [total[item] for item in items])
    return {"mean": interval.value, "low": interval.low, "high": interval.high, "prompt_tokens_counted": prompts}
