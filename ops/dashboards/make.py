"""Writes what the chart carries: the dashboards' JSON, and a copy of the alert rules.

    python ops/dashboards/make.py [--check]

With --check nothing is written, and 1 is returned when a file is not what the source makes. A chart
reads nothing outside its folder, hence the copy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cluster_board
import serving_board
import training_board
from exported import appears
from grafana import Board

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "charts" / "plinth" / "files" / "dashboards"
RULES = ROOT / "ops" / "alerts" / "plinth.rules.yaml"
CHARTS_RULES = FOLDER.parent / RULES.name
BOARDS: dict[str, Board] = {
    "serving.json": serving_board.BOARD,
    "training.json": training_board.BOARD,
    "cluster.json": cluster_board.BOARD,
}


def outdated() -> list[str]:
    """Names of files that are not what the source makes, and of those that no source makes."""
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    made = {name: board.text(appears) for name, board in BOARDS.items()}
    wrong = [name for name in there | made if there.get(name) != made.get(name)]
    if not CHARTS_RULES.exists() or CHARTS_RULES.read_text() != RULES.read_text():
        wrong.append(CHARTS_RULES.name)
    return sorted(wrong)


def main(arguments: Sequence[str]) -> int:
    if "--check" in arguments:
        for name in (wrong := outdated()):
            print(f"the chart's {name} is not what its source makes: run `make dashboards`")
        return 1 if wrong else 0
    for name, board in BOARDS.items():
        (FOLDER / name).write_text(board.text(appears))
    CHARTS_RULES.write_text(RULES.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
