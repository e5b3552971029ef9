"""The chats of ops/examples, as they are, against a gateway with a scripted model."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway_stages import Stack, running_stack, script_text

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples"
ANSWER = 64
MODULES = EXAMPLES / "node" / "node_modules"


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


async def said(stack: Stack, *command: str | Path, key: str | None = None) -> tuple[int, str, str]:
    """(exit status, output, errors)."""
    environment = {
        **os.environ,
        "PLINTH_URL": stack.grpc_address,
        "PLINTH_API_KEY": stack.key if key is None else key,
    }
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


def answers() -> set[str]:
    """The script, from wherever a seed has it begin."""
    return {script_text(seed, 0, ANSWER) + "\n" for seed in range(1000)}


async def test_by_the_client(stack: Stack) -> None:
    status, out, errors = await said(stack, sys.executable, EXAMPLES / "chat.py", "chat", "Hello")
    assert (status, errors) == (0, "")
    assert out in answers()
    status, _, errors = await said(stack, sys.executable, EXAMPLES / "chat.py", "other", "Hello")
    assert status == 1
    assert "MODEL_NOT_FOUND" in errors


async def test_by_stubs_alone(stack: Stack) -> None:
    given = (stack.grpc_address, stack.key, "chat", "Hello")
    status, out, errors = await said(stack, sys.executable, EXAMPLES / "grpc_client.py", *given)
    assert (status, errors) == (0, "")
    assert out in answers()


async def test_by_node(stack: Stack) -> None:
    node = shutil.which("node")
    if node is None or not MODULES.is_dir():
        pytest.skip("needs Node (apt-get install nodejs npm) and `make examples`")
    given = (stack.grpc_address, stack.key)
    program = EXAMPLES / "node" / "chat.js"
    status, out, errors = await said(stack, node, program, *given, "chat", "Hello")
    assert (status, errors) == (0, "")
    assert out in answers()
    status, _, errors = await said(stack, node, program, *given, "other", "Hello")
    assert status == 1
    assert "NOT_FOUND" in errors
