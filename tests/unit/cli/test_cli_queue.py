"""`plinth queue` against a real Redis."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import CliRunner

from plinth.cli.queue import app
from plinth.shared.connection import connect
from plinth.shared.queue import Queue


async def _bury(url: str) -> None:
    client = connect(url)
    await client.flushall()
    queue = Queue(client, "trainer-jobs")
    await queue.add("job-1", b"spec")
    lease = await queue.claim("a", wait_s=1)
    assert lease is not None
    await queue.fail(lease, "[no] corpus", retry=False)
    await client.aclose()


def test_queue_commands(redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLINTH_REDIS_URL", redis_server)
    asyncio.run(_bury(redis_server))
    cli = CliRunner()
    assert "trainer-jobs" in cli.invoke(app, ["list"]).output
    dead = cli.invoke(app, ["dead", "trainer-jobs"]).output
    assert "job-1" in dead and "[no] corpus" in dead
    # Whoever doesn't know the queue yet is told which one it is.
    everywhere = cli.invoke(app, ["dead"])
    assert everywhere.exit_code == 0 and "job-1" in everywhere.output
    assert "trainer-jobs" in everywhere.output
    assert "dead" in cli.invoke(app, ["inspect", "trainer-jobs", "job-1"]).output
    assert cli.invoke(app, ["requeue", "trainer-jobs", "job-1"]).exit_code == 0
    assert "waiting" in cli.invoke(app, ["inspect", "trainer-jobs", "job-1"]).output
    again = cli.invoke(app, ["requeue", "trainer-jobs", "job-1"])
    assert again.exit_code == 1 and "no dead letter" in again.output
    assert cli.invoke(app, ["inspect", "trainer-jobs", "job-2"]).exit_code == 1


def test_no_stack_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PLINTH_DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 1 and "plinth up" in " ".join(result.output.split())
