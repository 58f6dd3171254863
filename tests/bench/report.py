"""Results for people: tables on the terminal, a line in docs/benchmarks.ndjson, tables and plots in docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench import plots
from tests.bench.machine import ROOT
from tests.bench.sheet import Result, Rounds, median

RESULTS = ROOT / "docs" / "benchmarks.ndjson"
PAGE = ROOT / "docs" / "benchmarks.md"
SECTION = re.compile(r"(<!-- begin (?P<name>\w+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
MACHINE = "machine"
"""The page's section of machine facts; the other sections are named after benchmarks."""

Row = list[str]


def show(result: Result, console: Console) -> None:
    """Print one result."""
    console.print(f"[bold]{result.benchmark}[/] ({result.size}, {result.rounds} rounds): medians (smallest..largest)")
    for title, rows in _tables(result):
        table = Table(*rows[0], title=title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    for heading, facts in (("parameters", result.parameters), ("machine", result.machine | _moment(result))):
        console.print(f"{heading}: {'; '.join(f'{name} {value}' for name, value in facts.items())}", highlight=False)


def append(result: Result, path: Path = RESULTS) -> None:
    """Add one line."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(result) + b"\n")


def newest(path: Path = RESULTS) -> dict[str, Result]:
    """The last result of each benchmark in a file of lines."""
    if not path.exists():
        return {}
    results = [msgspec.json.decode(line, type=Result) for line in path.read_bytes().splitlines()]
    return {result.benchmark: result for result in results}


def rewritten(page: str, results: dict[str, Result]) -> str:
    """A page whose sections `<!-- begin NAME -->` to `<!-- end NAME -->` hold what was measured last."""

    def section(match: re.Match[str]) -> str:
        name = match["name"]
        if name == MACHINE:
            text = "".join(_machine_markdown(results))
        elif name in results:
            text = "".join(_result_markdown(results[name]))
        else:
            text = "\nNot measured yet.\n\n"
        return f"{match[1]}{text}{match[3]}"

    return SECTION.sub(section, page)


def rewrite() -> None:
    """Bring docs/benchmarks.md and docs/plots up to date with docs/benchmarks.ndjson."""
    results = newest()
    PAGE.write_text(rewritten(PAGE.read_text(), results))
    plots.FOLDER.mkdir(exist_ok=True)
    files = plots.drawn(results)
    for name, content in files.items():
        (plots.FOLDER / name).write_bytes(content)
    for path in plots.FOLDER.iterdir():
        if path.name not in files:
            path.unlink()


def _tables(result: Result) -> Iterator[tuple[str, list[Row]]]:
    """Each table as a title and rows, the first of which is the heading."""
    for title, lines in result.tables.items():
        columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
        rows = [["", *columns]]
        for name, cells in lines.items():
            rows.append([name, *(_spread(cells[column]) if column in cells else "" for column in columns)])
        yield title, rows
    if result.ratios:
        yield "Ratios", [["", "times"], *([label, _spread(quotients)] for label, quotients in result.ratios.items())]
    yield (
        "Answers",
        [
            ["question", "checksum", "the same from"],
            *([question, next(iter(answers.values())), ", ".join(answers)] for question, answers in result.checksums.items()),
        ],
    )


def _result_markdown(result: Result) -> Iterator[str]:
    moment = "; ".join(f"{name} {value}" for name, value in _moment(result).items())
    yield f"\n{result.rounds} rounds; {moment}.\n\n"
    yield from (f"- {name}: {value}\n" for name, value in result.parameters.items())
    yield from plots.markdown(result.benchmark)
    for title, rows in _tables(result):
        yield f"\n**{title}**\n\n"
        yield from _markdown(rows)
    yield "\n"


def _machine_markdown(results: dict[str, Result]) -> Iterator[str]:
    """The facts that all results share once, those that differ per benchmark."""
    if not results:
        yield "\nNot measured yet.\n\n"
        return
    rows = [["", "value"]]
    for fact in next(iter(results.values())).machine:
        values = {name: result.machine.get(fact, "") for name, result in results.items()}
        same = len(set(values.values())) == 1
        rows.append([fact, next(iter(values.values())) if same else ", ".join(f"{name}: {v}" for name, v in values.items())])
    yield "\n"
    yield from _markdown(rows)
    yield "\n"


def _markdown(rows: list[Row]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |\n"
        if number == 0:
            yield f"|---|{'---:|' * (len(row) - 1)}\n"


def _moment(result: Result) -> dict[str, str]:
    return {
        "measured": result.at[:10],
        "commit": result.commit or "unknown",
        "busy with other things": f"{result.others_cores:g} cores",
    }


def _spread(figures: Rounds) -> str:
    show = _count if all(figure.is_integer() for figure in figures) else _figure
    middle = show(median(figures))
    return middle if len(figures) == 1 else f"{middle} ({show(min(figures))}..{show(max(figures))})"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _figure(figure: float) -> str:
    if figure >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}" if figure >= 0.1 else f"{figure:.2g}"
