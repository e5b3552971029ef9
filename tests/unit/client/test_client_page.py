"""What docs/grpc.md and the README show of plinth.client is there, with the arguments shown."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing
from pathlib import Path
from types import ModuleType

import pytest

from plinth.client import Client
from plinth.client.calls import Services

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = [
    block
    for page in ("docs/grpc.md", "README.md")
    for block in BLOCK.findall((ROOT / page).read_text())
    if "plinth" in block and "OpenAI" not in block
]


def service(name: str) -> type:
    """The class of the calls that block."""
    property_ = vars(Services)[name]
    module = importlib.import_module(f"plinth.client.calls.{name}")
    found: type = typing.get_type_hints(property_.func, vars(module))["return"]
    return found


def called(call: ast.Call) -> object | None:
    """The method that `plinth.runs.get_run(…)`, `plinth.upload(…)` or `Client(…)` calls; None for
    a call of something else."""
    match call.func:
        case ast.Attribute(ast.Attribute(ast.Name("plinth"), name), method):
            return inspect.getattr_static(service(name), method)
        case ast.Attribute(ast.Name("plinth"), method):
            return inspect.getattr_static(Client, method)
        case ast.Name("Client"):
            return Client.__init__
    return None


def test_there_is_something_to_look_at() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_shown_is_there(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module: ModuleType = importlib.import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names)
        elif isinstance(node, ast.Call) and (method := called(node)) is not None:
            given = {str(keyword.arg): None for keyword in node.keywords}
            signature = inspect.signature(typing.cast("typing.Any", method))
            signature.bind(None, *node.args, **given)
