"""The plot of a sweep: a point for each recipe, over two measures or over what was varied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from engram_bench.report.plots import COLOURS, DPI, MARKERS
from engram_bench.sweep.results import LESS, MEASURES, SHARES, Recipe

ALT = "Each recipe of the sweep; the dashed line joins those that no other beats in both"
STILL = 1e-3  # nats per token up to which the scale of KL is linear
MOST_LABELS = 12  # of more points, only those on the front are labelled
TITLES = {"kl": "KL on unrelated text, nats per token (white: 0 by construction)", "train_seconds": "training, s"}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (x, y) that no other beats in both, less x and more y, in the order of x."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    found: list[int] = []
    best = -math.inf
    for i in order:
        if points[i][1] > best:
            found.append(i)
            best = points[i][1]
    return found


def draw(recipes: Sequence[Recipe], x: str, y: str) -> Figure | None:
    """A point for each recipe, with the interval over seeds; None if no recipe has both.

    Args:
        recipes: see `results.recipes`.
        x: a measure, or what was varied. Over a measure, a dashed line joins the recipes that no other beats in both.
        y: a measure.
    """
    over_measure = x in MEASURES
    texts = list(dict.fromkeys(recipe.axes[x] for recipe in recipes if x in recipe.axes))
    numbers = [_number(text) for text in texts]

    def at(recipe: Recipe) -> float | None:
        if over_measure:
            return _scaled(recipe.means[x], x in SHARES)
        number = numbers[texts.index(recipe.axes[x])] if x in recipe.axes else None
        return float(texts.index(recipe.axes[x])) if None in numbers and x in recipe.axes else number

    found = [(r, at(r), _scaled(r.means[y], y in SHARES)) for r in recipes]
    points = [(recipe, over, up) for recipe, over, up in found if over is not None and up is not None]
    if not points:
        return None
    figure = Figure(figsize=(1600 / DPI, 900 / DPI), layout="constrained")
    axis: Any = figure.subplots()
    for n, name in enumerate(dict.fromkeys(recipe.variant for recipe, _, _ in points)):
        own = sorted((point for point in points if point[0].variant == name), key=lambda point: point[1])
        axis.errorbar(
            [over for _, over, _ in own],
            [up for _, _, up in own],
            yerr=[_scaled(recipe.halves[y], y in SHARES) or 0.0 for recipe, _, _ in own],
            xerr=[_scaled(recipe.halves[x], x in SHARES) or 0.0 for recipe, _, _ in own] if over_measure else None,
            linestyle="none" if over_measure else "-",
            linewidth=1,
            label=name,
            color=COLOURS[n % len(COLOURS)],
            marker=MARKERS[n % len(MARKERS)],
        )
        for recipe, over, up in own:
            if x == "kl" and recipe.still:  # 0 by construction
                style = {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)]}
                axis.plot([over], [up], markerfacecolor="white", linestyle="none", zorder=3, **style)
    if over_measure:
        where = [(over, up) for _, over, up in points]
        ahead = front([(over if x in LESS else -over, -up if y in LESS else up) for over, up in where])
        axis.plot(*zip(*(where[i] for i in ahead), strict=True), "--", color="grey", label="not beaten in both")
        _label(axis, [points[i] for i in (range(len(points)) if len(points) <= MOST_LABELS else ahead)])
    if x == "kl":
        axis.set_xscale("symlog", linthresh=STILL)
    elif not over_measure and None in numbers:
        axis.set_xticks(range(len(texts)), texts)
    elif not over_measure and len(texts) > 2 and min(number for number in numbers if number is not None) > 0:
        axis.set_xscale("log")
    axis.set(xlabel=_title(x, x in SHARES), ylabel=_title(y, y in SHARES))
    axis.grid(alpha=0.3)
    named = axis.get_xticklabels() if None in numbers else ()
    for text in (*axis.legend(frameon=False).get_texts(), *named, *axis.texts):
        text.set_parse_math(False)  # a $ in a name is a $
    return figure


def _label(axis: Any, points: Sequence[tuple[Recipe, float, float]]) -> None:
    """Name points by what their recipes change, on their left side, where there is room, but for the first."""
    first = min(over for _, over, _ in points)
    for recipe, over, up in points:
        label = recipe.label.removeprefix(f"{recipe.variant} ").replace("training.", "")
        side = {"xytext": (-6, 3), "ha": "right"} if over > first else {"xytext": (6, 3), "ha": "left"}
        axis.annotate(label, (over, up), textcoords="offset points", fontsize=6, **side)


def _scaled(value: float | None, share: bool) -> float | None:
    return value if value is None or not share else 100 * value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _title(name: str, share: bool) -> str:
    return f"{name}, %" if share else TITLES.get(name, name)
