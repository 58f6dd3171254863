"""The picture: when flights are late, and how well the model tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from featurestore.demo.flights import LATE_MIN
from featurestore.demo.model import Evaluation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

INK: Final = "#22303c"
FAINT: Final = "#8a97a3"
PAPER: Final = "#fbfaf7"
ACCENT: Final = "#c8432b"
LATENESS: Final = ("#f3ecdc", "#f2c879", "#e5813f", "#b7302a", "#5c1027")
"""Colours from no late flight to SHARE_DARKEST of them."""

HOURS: Final = tuple(range(5, 24))
"""Local hours with scheduled departures; one flight of the year was scheduled for another."""
WIND_MPH: Final = (0, 5, 10, 15, 20, 25)
"""Where the classes of wind begin; the last one has no end."""
CELL_FLIGHTS_MIN: Final = 100
"""Cells with fewer flights stay empty: their share would be chance."""
SHARE_DARKEST: Final = 0.65
SHARE_LIGHT_INK: Final = 0.38


def draw(flights: pd.DataFrame, evaluation: Evaluation, path: Path) -> None:
    """Write a PNG: the share of late flights by hour and wind, and the ROC curves.

    Args:
        flights: the training set.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), dpi=150, facecolor=PAPER)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    _lateness(left, flights)
    _curves(right, evaluation)
    figure.text(0.075, 0.925, "When do flights from New York arrive late?", fontsize=19, fontweight="bold", color=INK)
    figure.text(
        0.075,
        0.878,
        f"{int(flights['late'].notna().sum()):,} flights of 2013, each with the weather as it was known at scheduled departure",
        fontsize=11.5,
        color=FAINT,
    )
    figure.subplots_adjust(left=0.075, right=0.965, top=0.77, bottom=0.12, wspace=0.2)
    figure.savefig(path, facecolor=PAPER, metadata={"Software": None})


def _lateness(axes: Axes, flights: pd.DataFrame) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    arrived = flights[flights["late"].notna() & flights["weather.wind_speed"].notna()]
    wind = np.digitize(arrived["weather.wind_speed"], WIND_MPH) - 1
    cells = arrived["late"].astype("float64").groupby([wind, arrived["hour"]]).agg(["mean", "size"])
    shares = np.full((len(WIND_MPH), len(HOURS)), np.nan)
    for (row, hour), share, size in zip(cells.index, cells["mean"], cells["size"], strict=True):
        if hour in HOURS and size >= CELL_FLIGHTS_MIN:
            shares[int(row), HOURS.index(hour)] = share
    colours = LinearSegmentedColormap.from_list("lateness", LATENESS)
    axes.imshow(shares, cmap=colours, aspect="auto", origin="lower", vmin=0, vmax=SHARE_DARKEST)
    for row, column in np.argwhere(~np.isnan(shares)):
        share = shares[row, column]
        ink = PAPER if share > SHARE_LIGHT_INK else INK
        axes.text(column, row, f"{share:.0%}".rstrip("%"), ha="center", va="center", fontsize=9.5, color=ink)
    axes.set_xticks(range(0, len(HOURS), 2), [f"{hour}:00" for hour in HOURS[::2]])
    axes.set_yticks(range(len(WIND_MPH)), [*(f"{low} to {low + 5}" for low in range(0, 25, 5)), "over 25"])
    axes.set_xlabel(f"scheduled departure, New York time (empty: fewer than {CELL_FLIGHTS_MIN} flights)")
    axes.set_ylabel("wind, mph")
    percent = flights["late"].astype("float64").mean()
    axes.set_title(
        f"Percent arriving over {LATE_MIN} minutes late ({percent:.0%} of all)", loc="left", fontsize=12, color=INK, pad=10
    )
    axes.set_xticks(np.arange(-0.5, len(HOURS)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(WIND_MPH)), minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.5)
    _bare(axes)


def _curves(axes: Axes, evaluation: Evaluation) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
    styles: list[dict[str, Any]] = [{"color": FAINT, "linewidth": 1.5}, {"color": INK, "linewidth": 1.8}]
    for curve, style in zip(evaluation.baselines, styles, strict=True):
        axes.plot(curve.false_positives, curve.true_positives, label=f"{curve.auc:.3f}  {curve.name}", **style)
    best = evaluation.curve
    axes.plot(best.false_positives, best.true_positives, color=ACCENT, linewidth=2.6, label=f"{best.auc:.3f}  {best.name}")
    axes.fill_between(best.false_positives, best.true_positives, best.false_positives, color=ACCENT, alpha=0.07, linewidth=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.2, 0.4, 0.6, 0.8, 1])
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("punctual flights wrongly suspected")
    axes.set_ylabel("late flights found")
    axes.set_title("Foretelling October to December", loc="left", fontsize=12, color=INK, pad=10)
    legend = axes.legend(
        loc="lower right", frameon=False, title="area under the curve", alignment="left", labelcolor=INK, reverse=True
    )
    legend.get_title().set_color(FAINT)
    axes.grid(color="#e4e1d8", linewidth=0.8)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side in axes.spines.values():
        side.set_visible(False)
