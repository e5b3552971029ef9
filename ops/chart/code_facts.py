"""What the code serves, counts and asks for: read from its source, so that the chart's own words
about it can be checked against something else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "services" / "plinth"


@cache
def grpc_services(stage: str) -> frozenset[str]:
    """Names that a stage (or the gateway) makes GrpcService objects of; health tells of each."""
    found = {_text(call.args[0]) for call in _calls(ROOT / stage, "GrpcService") if call.args}
    return frozenset(name for name in found if name)


@cache
def http_paths() -> frozenset[str]:
    """Paths that the gateway's REST API answers to GET."""
    routes = [
        call
        for name in ("get", "api_route")
        for call in _calls(ROOT / "gateway", name)
        if call.args
    ]
    found = {_text(call.args[0]) for call in routes}
    return frozenset(path for path in found if path and path.startswith("/"))


def module_file(module: str) -> Path | None:
    """The file that `python -m module` runs; None when there is none, or it has no main part."""
    base = ROOT.parent / Path(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__main__.py"):
        if path.is_file() and '__name__ == "__main__"' in path.read_text():
            return path
    return None


def has_function(reference: str) -> bool:
    """Whether "module:function" names a function."""
    module, _, name = reference.partition(":")
    path = (ROOT.parent / Path(*module.split("."))).with_suffix(".py")
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text())
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def flags_of(path: Path) -> frozenset[str]:
    """Options that the module's parser knows."""
    found = {_text(call.args[0]) for call in _calls_in(path, "add_argument") if call.args}
    return frozenset(flag for flag in found if flag)


def _calls(folder: Path, name: str) -> Iterator[ast.Call]:
    for path in sorted(folder.rglob("*.py")):
        if "v1" not in path.relative_to(ROOT).parts:
            yield from _calls_in(path, name)


def _calls_in(path: Path, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            if name == getattr(called, "id", getattr(called, "attr", "")):
                yield node


def _text(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""
