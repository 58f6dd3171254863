"""The demonstration: a year of New York flights and weather, from dataframes to a trained model."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def run(home: Path | None, output: Path, console: Console) -> None:
    """Run the demonstration and print each step with its time."""
