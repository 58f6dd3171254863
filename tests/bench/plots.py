"""Plots of the newest results, as SVG files in docs/plots. The same results give the same bytes with the same matplotlib.

Bars begin at zero; their lines reach from the smallest round to the largest. Colours are those of Okabe and Ito, which people
with any colour vision can tell apart, and everything is labelled beside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench import online, redis_limits
from tests.bench.machine import ROOT
from tests.bench.sheet import Result, Rounds, median

FOLDER = ROOT / "docs" / "plots"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8C8C8C"
BACKENDS = {online.ON_REDIS: ("Redis", BLUE), online.EMBEDDED: ("embedded", ORANGE)}
"""How rows of a backend are labelled, and in which colour."""
STYLE = {
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#E0E0E0",
    "ytick.left": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "featurestore",
}
WIDTH_IN, BAR_IN, RIGHT_IN = 9.0, 0.27, 0.15
TITLE_IN, SCALE_IN, UNIT_IN = 0.35, 0.35, 0.25
"""Heights of what stands above the bars of a panel, below them, and below the last panel."""
LETTER_IN = 0.077
"""Room for a letter of a label. matplotlib's own layouts differ by a rounding error from one call to the next."""
HALF = ("p50 at half load, ms", "p99 at half load, ms")


class Plot(NamedTuple):
    """One picture of a benchmark's result; `alt` says what it shows."""

    name: str
    alt: str
    draw: Callable[[Result], Figure]


class Bar(NamedTuple):
    label: str
    figures: Rounds
    colour: str


class Panel(NamedTuple):
    title: str
    bars: Sequence[Bar]


def drawn(results: Mapping[str, Result]) -> dict[str, bytes]:
    """The files of all plots of these results, by name."""
    return {f"{plot.name}.svg": _svg(plot, results[name]) for name, plots in PLOTS.items() if name in results for plot in plots}


def markdown(benchmark: str) -> Iterable[str]:
    """What the page says where the plots of a benchmark are to be seen."""
    for plot in PLOTS.get(benchmark, ()):
        yield f"\n![{plot.alt}]({FOLDER.name}/{plot.name}.svg)\n"


def _svg(plot: Plot, result: Result) -> bytes:
    file = io.BytesIO()
    with style.context(["default", STYLE]):
        plot.draw(result).savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _panels(panels: Sequence[Panel], unit: str) -> Figure:
    """Panels of horizontal bars below each other, each with a scale of its own."""
    labels = [[bar.label for bar in panel.bars] for panel in panels]
    figure, all_axes = _figure(labels, unit)
    for axes, panel in zip(all_axes, panels, strict=True):
        _bars(axes, panel)
    return figure


def _figure(labels: Sequence[Sequence[str]], unit: str) -> tuple[Figure, list[Axes]]:
    """Room for so many panels, and in each for a row per label; the unit stands below the last one."""
    left_in = max(len(label) for panel in labels for label in panel) * LETTER_IN + RIGHT_IN
    heights_in = [len(panel) * BAR_IN for panel in labels]
    height_in = sum(heights_in) + len(labels) * (TITLE_IN + SCALE_IN) + UNIT_IN
    figure = Figure(figsize=(WIDTH_IN, height_in))
    all_axes, top_in = [], height_in
    for panel, panel_in in zip(labels, heights_in, strict=True):
        bottom_in = top_in - TITLE_IN - panel_in
        width = (WIDTH_IN - left_in - RIGHT_IN) / WIDTH_IN
        axes = figure.add_axes((left_in / WIDTH_IN, bottom_in / height_in, width, panel_in / height_in))
        axes.set_yticks(range(len(panel)), panel)
        axes.set_ylim(len(panel) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        all_axes.append(axes)
        top_in = bottom_in - SCALE_IN
    all_axes[-1].set_xlabel(unit)
    return figure, all_axes


def _bars(axes: Axes, panel: Panel) -> None:
    most = max(max(bar.figures) for bar in panel.bars)
    for place, bar in enumerate(panel.bars):
        middle = median(bar.figures)
        axes.barh(place, middle, height=0.7, color=bar.colour)
        axes.hlines(place, min(bar.figures), max(bar.figures), color="black", linewidth=1.2)
        axes.text(max(bar.figures) + most * 0.01, place, _shown(middle), va="center")
    axes.set_xlim(0, most * 1.12)
    axes.set_title(panel.title)


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def _online_requests(result: Result) -> Figure:
    def paths(pattern: str) -> list[Bar]:
        rows = _online_rows(result)
        return [Bar(label, cells["requests/s"], colour) for name, label, cells, colour in rows if re.match(pattern, name)]

    def limit(table: str, row: str, column: str = "requests/s") -> Bar:
        return Bar(f"{table}: {row}", result.tables[table][row][column], GREY)

    raw = redis_limits.TABLE
    writes = [
        limit(raw, redis_limits.MINIMAL),
        limit(raw, redis_limits.APPLY),
        limit(online.DISK, "commits of 1 row", "commits/s"),
        *paths("PutRecord"),
    ]
    panels = [
        Panel("Reading a record", [limit(raw, redis_limits.GET), *paths("GetRecord")]),
        Panel("Reading 100 records", [limit(raw, redis_limits.MGET), *paths(".*BatchGetRecord")]),
        Panel("Writing a record", writes),
    ]
    return _panels(panels, "requests per second over 32 connections; grey: limits")


def _online_latency(result: Result) -> Figure:
    """A line from p50 to p99 for each path, on a logarithmic scale."""
    rows = [(label, [median(cells[column]) for column in HALF], colour) for _, label, cells, colour in _online_rows(result)]
    figure, (axes,) = _figure([[label for label, _, _ in rows]], "ms, p50 (dot) to p99 (bar)")
    for place, (_, (p50_ms, p99_ms), colour) in enumerate(rows):
        axes.hlines(place, p50_ms, p99_ms, color=colour, linewidth=3)
        axes.plot(p50_ms, place, marker="o", markersize=7, color=colour)
        axes.plot(p99_ms, place, marker="|", markersize=12, markeredgewidth=3, color=colour)
        axes.annotate(_shown(p50_ms), (p50_ms, place), (-7, 0), textcoords="offset points", va="center", ha="right")
        axes.annotate(_shown(p99_ms), (p99_ms, place), (7, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.set_xlim(min(p50_ms for _, (p50_ms, _), _ in rows) / 4, max(p99_ms for _, (_, p99_ms), _ in rows) * 3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_title("Latency at half of what the service can do")
    return figure


def _online_rows(result: Result) -> Iterator[tuple[str, str, dict[str, Rounds], str]]:
    """Each path on each backend: its name, label, cells and colour."""
    for name in result.tables[online.TABLES[online.ON_REDIS]]:
        for who, (backend, colour) in BACKENDS.items():
            cells = result.tables[online.TABLES[who]].get(name)
            if cells is not None:
                yield name, f"{name}: {backend}", cells, colour


def _seconds(result: Result, table: str, title: str) -> Figure:
    """All rows of a table by their `took, s`; the first is ours."""
    bars = [
        Bar(name, cells["took, s"], GREY if place else GREEN) for place, (name, cells) in enumerate(result.tables[table].items())
    ]
    return _panels([Panel(title, bars)], "seconds; less is better")


PLOTS: dict[str, Sequence[Plot]] = {
    "online": (
        Plot("online_requests", "requests per second of each path beside its limits", _online_requests),
        Plot("online_latency", "latency of each path at half load, p50 to p99", _online_latency),
    ),
    "training_set": (
        Plot(
            "training_set",
            "seconds that a training set takes, beside the same join by hand in other tools",
            lambda result: _seconds(result, "Joins", "A training set, from Parquet files to a table"),
        ),
    ),
    "compacted": (
        Plot(
            "compacted",
            "seconds that a training set takes after compaction, beside the least it could cost",
            lambda result: _seconds(result, "Training set", "A training set, from compacted files (its limits add up)"),
        ),
    ),
}
"""By benchmark, in the order in which they are shown."""
