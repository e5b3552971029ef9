"""No module of these packages needs one that needs it, not for its types or inside a function
either."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

import plinth

ROOT = Path(plinth.__path__[0])


def needs(package: str) -> dict[str, set[str]]:
    files = {
        ".".join(("plinth", *file.relative_to(ROOT).with_suffix("").parts)): file
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__init__.py"
    }
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        imported = set[str]()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {one.name for one in node.names}
        found[name] = {one for one in imported if one in files and one != name}
    return found


@pytest.mark.parametrize("package", ["cli", "coordinator", "shared"])
def test_there_is_no_circle(package: str) -> None:
    found = needs(package)
    assert len(found) > 10
    assert any(found.values())
    graphlib.TopologicalSorter(found).prepare()  # CycleError names the circle
