"""The programs of ops/examples, as they are, through a gateway: chats with a scripted model, runs
of a real coordinator, files on its store."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_coordinator_kills import PIPELINE, Replica

from gateway_process import GatewayProcess
from gateway_stages import Stack, running_stack, script_text
from scripted_stages import World

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples"
ANSWER = 64
MODULES = EXAMPLES / "node" / "node_modules"


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


async def said(address: str, key: str, *command: str | Path) -> tuple[int, str, str]:
    """(exit status, output, errors)."""
    environment = {**os.environ, "PLINTH_URL": address, "PLINTH_API_KEY": key}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


def node() -> str:
    found = shutil.which("node")
    if found is None or not MODULES.is_dir():
        pytest.skip("needs Node (apt-get install nodejs npm) and `make examples`")
    return found


def answers() -> set[str]:
    """The script, from wherever a seed has it begin."""
    return {script_text(seed, 0, ANSWER) + "\n" for seed in range(1000)}


async def test_a_chat_by_the_client(stack: Stack) -> None:
    program = (sys.executable, EXAMPLES / "chat.py")
    status, out, errors = await said(stack.grpc_address, stack.key, *program, "chat", "Hello")
    assert (status, errors) == (0, "")
    assert out in answers()
    status, _, errors = await said(stack.grpc_address, stack.key, *program, "other", "Hello")
    assert status == 1
    assert "MODEL_NOT_FOUND" in errors


async def test_a_chat_by_stubs_alone(stack: Stack) -> None:
    given = (stack.grpc_address, stack.key, "chat", "Hello")
    program = (sys.executable, EXAMPLES / "grpc_client.py")
    status, out, errors = await said("", "", *program, *given)
    assert (status, errors) == (0, "")
    assert out in answers()


async def test_a_chat_by_node(stack: Stack) -> None:
    program = (node(), EXAMPLES / "node" / "chat.js", stack.grpc_address, stack.key)
    status, out, errors = await said("", "", *program, "chat", "Hello")
    assert (status, errors) == (0, "")
    assert out in answers()
    status, _, errors = await said("", "", *program, "other", "Hello")
    assert status == 1
    assert "NOT_FOUND" in errors


@pytest.fixture
async def coordinator(
    tmp_path: Path, redis_server: str, redis_client: object
) -> AsyncIterator[str]:
    """The address of a gateway, which asks for no key, with a coordinator behind it."""
    async with World(tmp_path, redis_server) as world:
        replica, gateway = Replica(world), GatewayProcess(world.settings)
        try:
            await replica.start()
            await gateway.start()
            yield gateway.address
        finally:
            await gateway.kill()
            await replica.kill()


async def test_a_run_by_the_client(coordinator: str, tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    program = (sys.executable, EXAMPLES / "watch_run.py", "r1", tmp_path / "pipeline.yaml")
    status, out, errors = await said(coordinator, "", *program)
    assert (status, errors) == (0, "")
    assert out.splitlines()[-1].startswith("RUN_STATE_SUCCEEDED corpus STEP_STATE_SUCCEEDED")
    again = await said(coordinator, "", *program)
    assert again == (0, out.splitlines()[-1] + "\n", "")


async def test_a_run_by_node(coordinator: str, tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    program = (node(), EXAMPLES / "node" / "watch_run.js", coordinator, "")
    status, out, errors = await said("", "", *program, "r1", tmp_path / "pipeline.yaml")
    assert (status, errors) == (0, "")
    assert out.splitlines()[-1].startswith("RUN_STATE_SUCCEEDED corpus STEP_STATE_SUCCEEDED")
    other = await said("", "", *program, "r1", __file__)
    assert other[0] == 1


async def test_files_by_the_client(coordinator: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "sub" / "weights").write_bytes(bytes(3_000_000))
    program = (sys.executable, EXAMPLES / "transfer.py", tmp_path / "mine", "mine", tmp_path / "d")
    status, out, errors = await said(coordinator, "", *program)
    assert (status, errors) == (0, "")
    assert out.startswith("artifacts/mine@1 sha256:")
    assert (tmp_path / "d" / "sub" / "weights").read_bytes() == bytes(3_000_000)
