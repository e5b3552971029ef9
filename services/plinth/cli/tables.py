"""Tables whose words stay whole: what a person reads, and what a program cuts out of a pipe."""

from __future__ import annotations

import re
from collections.abc import Collection
from copy import copy
from dataclasses import replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

_TEXT_CELLS = 24  # what is left of a column of free text on a narrow terminal, at least
_PADDING = 2
# As `str.splitlines` has them; rich takes out those that are not here.
_LINE_END = re.compile("[\n\x1c-\x1e\x85\u2028\u2029]")


class WholeTable(Table):
    """A table that cuts nothing: ids, references and addresses can be copied from it.

    On a terminal, columns of free text are folded to fit, and lines that still are too long go on
    below; elsewhere each row is one line, whatever its length, and a text of several lines has
    blanks where they end. `texts`: titles of the columns of
    free text. Print it with `show`, since a console cuts what is wider than it.
    """

    def __init__(self, *titles: str, texts: Collection[str] = ("",)) -> None:
        super().__init__(box=None, padding=(0, _PADDING, 0, 0))
        self._texts = texts
        self._cells: list[int] = []  # of the widest cell, by column
        for title in titles:
            self.add_column(title)

    def add_column(self, header: RenderableType = "", *arguments: Any, **more: Any) -> None:
        free = header in self._texts
        super().add_column(header, *arguments, **{"no_wrap": not free, "overflow": "fold", **more})
        self._cells.append(cell_len(str(header)))

    def add_row(self, *cells: RenderableType | None, **more: Any) -> None:
        super().add_row(*cells, **more)
        for column, cell in enumerate(cells):
            self._cells[column] = max(self._cells[column], _width(cell))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            flat = copy(self)
            flat.columns = [
                replace(column, _cells=[_in_one_line(cell) for cell in column._cells])
                for column in self.columns
            ]
            cells = [max(map(_width, [one.header, *one._cells])) for one in flat.columns]
            width = sum(cells) + _PADDING * len(cells)
            yield from Table.__rich_console__(flat, console, options.update(width=width))
            return
        whole = sum(self._cells) + _PADDING * len(self._cells)
        foldable = sum(
            max(0, cells - _TEXT_CELLS)
            for column, cells in zip(self.columns, self._cells, strict=True)
            if not column.no_wrap
        )
        width = max(min(whole, options.max_width), whole - foldable)
        yield from super().__rich_console__(console, options.update(width=width))


def show(console: Console, what: RenderableType) -> None:
    """Prints with nothing cut off at the console's edge."""
    console.print(what, crop=False)


def _in_one_line(cell: RenderableType) -> RenderableType:
    if isinstance(cell, str):
        return " ".join(cell.splitlines())
    if not isinstance(cell, Text):
        return cell
    flat = cell.copy()
    flat.plain = _LINE_END.sub(" ", cell.plain)
    return flat


def _width(cell: RenderableType | None) -> int:
    text = Text.from_markup(cell) if isinstance(cell, str) else cell
    if not isinstance(text, Text):
        return 0
    return max((cell_len(line) for line in text.plain.splitlines()), default=0)
