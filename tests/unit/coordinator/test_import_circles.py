"""No module of the coordinator needs one that needs it, not for its types either."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import plinth.coordinator

ROOT = Path(plinth.coordinator.__file__).parents[1]


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def test_there_is_no_circle() -> None:
    files = {name_of(file): file for file in (ROOT / "coordinator").rglob("*.py")}
    needs: dict[str, set[str]] = {}
    for name, file in files.items():
        if file.name == "__init__.py":
            continue  # what gathers a package's modules is imported with each of them
        imported = set[str]()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {one.name for one in node.names}
        needs[name] = {one for one in imported if one in files and one != name}
    assert len(needs) > 20
    assert {"plinth.coordinator.steps.trial"} <= needs["plinth.coordinator.steps.canary"]
    graphlib.TopologicalSorter(needs).prepare()  # CycleError names the circle
