"""Writes the dashboards' JSON: `python ops/dashboards/make.py [--check]`.

With --check nothing is written, and 1 is returned when a file is not what the source makes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cluster_board
import serving_board
import training_board
from grafana import Board

FOLDER = Path(__file__).resolve().parent
BOARDS: dict[str, Board] = {
    "serving.json": serving_board.BOARD,
    "training.json": training_board.BOARD,
    "cluster.json": cluster_board.BOARD,
}


def outdated() -> list[str]:
    """Names of files that are not what the source makes, and of those that no source makes."""
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    made = {name: board.text() for name, board in BOARDS.items()}
    return sorted(name for name in there | made if there.get(name) != made.get(name))


def main(arguments: Sequence[str]) -> int:
    if "--check" in arguments:
        for name in (wrong := outdated()):
            print(f"ops/dashboards/{name} is not what its source makes: run `make dashboards`")
        return 1 if wrong else 0
    for name, board in BOARDS.items():
        (FOLDER / name).write_text(board.text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
