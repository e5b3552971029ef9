"""`plinth config`: the settings in force, where each came from, secrets masked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def config(
    data: Annotated[Path | None, typer.Option("--data", help="Data directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only what is not at its default.")
    ] = False,
) -> None:
    """Prints the effective settings with their source; secrets are masked."""
    from plinth.shared.settings import effective, load_settings

    settings = load_settings(**({} if data is None else {"data_dir": data}))
    rows = [row for row in effective(settings) if not changed or row[2] != "default"]
    if as_json:
        values = {key: {"value": value, "source": source} for key, value, source in rows}
        typer.echo(json.dumps(values, indent=2))
        return
    _print_table(rows)


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from plinth.cli.tables import WholeTable, show

    titles = ("setting", "value", "source")
    table = WholeTable(*titles, texts=("value",))
    for key, value, source in rows:
        style = "dim" if source == "default" else ""
        table.add_row(*(Text(cell, style=style) for cell in (key, value, source)))
    show(Console(), table)
