"""5,000 runs and jobs are listed completely and once while others are added and removed, and no
more of them than a page is held at a time."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from plinth.coordinator import machine
from plinth.coordinator import runs as run_records
from plinth.coordinator.pipeline import parse
from plinth.coordinator.run_service import RunServicer
from plinth.coordinator.runs import RunRecords
from plinth.shared.api.owners import owner_of
from plinth.shared.api.paging import Pages
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import SYSTEM
from plinth.shared.settings import load_settings
from plinth.trainer.job_messages import new_record
from plinth.trainer.service import TrainerStage
from plinth.v1 import jobs_pb2, runs_pb2

COUNT = 5000
SECRET = "s" * 32
TEXT = "x" * 4096  # in each record: all of them are 20 MB
PEAK_BYTES = 4 << 20
PIPELINE = parse(
    f"{{name: p, steps: {{one: {{kind: evaluate, model: m, corpus: c, prompts: [{TEXT}]}}}}}}"
)


async def walked(
    ask: Callable[[str], Awaitable[tuple[list[str], str]]],
    between: Callable[[int], Awaitable[None]],
) -> list[str]:
    """Names of all pages; `ask` gives one by its token. Asserts that little memory is held."""
    seen: list[str] = []
    token, page = "", 0
    tracemalloc.start()
    try:
        while True:
            names, token = await ask(token)
            seen += names
            if not token:
                break
            await between(page)
            page += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES, peak
    return seen


async def in_batches(make: Callable[[int], Awaitable[object]], count: int) -> None:
    for begin in range(0, count, 100):
        await asyncio.gather(*(make(number) for number in range(begin, begin + 100)))


async def test_runs(redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_records, "MAX_ACTIVE", 2 * COUNT)
    records = RunRecords(redis_client)
    nothing: Any = SimpleNamespace()
    service = RunServicer(records, nothing, nothing, Pages(SECRET))

    async def make(number: int, name: str = "r") -> None:
        # Many of one millisecond.
        await records.submit(machine.new_run(f"{name}{number}", PIPELINE, 1000 + number // 300))

    await in_batches(make, COUNT)

    async def ask(token: str) -> tuple[list[str], str]:
        request = runs_pb2.ListRunsRequest(page_size=40, page_token=token)
        answer = await service.ListRuns(request, None)
        assert len(answer.runs) <= 40
        return [run.name for run in answer.runs], answer.next_page_token

    async def between(page: int) -> None:
        await records.submit(machine.new_run(f"new{page}", PIPELINE, 9_000 + page))

    seen = await walked(ask, between)
    assert len(seen) == len(set(seen))
    assert set(seen) == {f"runs/r{number}" for number in range(COUNT)}
    assert seen[0] == f"runs/r{COUNT - 1}"
    # What was added is there, before them.
    newest, _ = await ask("")
    assert newest[0].startswith("runs/new")
    # A filter finds the oldest one behind all that it passes over.
    found: list[str] = []
    request = runs_pb2.ListRunsRequest(filter='name = "runs/r0"')
    while not found:
        answer = await service.ListRuns(request, None)
        found += [run.name for run in answer.runs]
        request.page_token = answer.next_page_token
    assert found == ["runs/r0"]


async def test_jobs(redis_client: Redis, tmp_path: Path) -> None:
    context: Any = SimpleNamespace(
        redis=redis_client,
        token=SECRET,
        settings=load_settings(data_dir=tmp_path),
        replica_id="one",
    )
    nobody: Any = SimpleNamespace()
    stage = TrainerStage(context, nobody)
    records = stage._records

    async def make(number: int, name: str = "j", moment: int = 0) -> None:
        spec = jobs_pb2.JobSpec(
            output_name="x", prepare=jobs_pb2.PrepareSpec(corpus_dir=f"/{TEXT}")
        )
        record = new_record(
            f"{name}{number}", spec, owner_of(SYSTEM), moment or 1000 + number // 300
        )
        assert await records.create(record)

    await in_batches(make, COUNT)
    removed: set[str] = set()

    async def ask(token: str) -> tuple[list[str], str]:
        request = jobs_pb2.ListJobsRequest(page_size=40, page_token=token)
        answer = await stage.ListJobs(request, None)  # type: ignore[arg-type]
        return [job.name for job in answer.jobs], answer.next_page_token

    async def between(page: int) -> None:
        await make(page, "new", 9_000 + page)
        gone = f"j{page * 7}"  # of those that are still to come, and of those that came
        assert await records.delete(gone)
        removed.add(f"jobs/{gone}")

    seen = await walked(ask, between)
    assert len(seen) == len(set(seen))
    every = {f"jobs/j{number}" for number in range(COUNT)}
    assert every - removed <= set(seen) <= every


async def test_a_token_of_another_list_is_refused(redis_client: Redis) -> None:
    records = RunRecords(redis_client)
    nothing: Any = SimpleNamespace()
    service = RunServicer(records, nothing, nothing, Pages(SECRET))
    for number in range(3):
        await records.submit(machine.new_run(f"r{number}", PIPELINE, number + 1))
    first = await service.ListRuns(runs_pb2.ListRunsRequest(page_size=1), None)
    token = first.next_page_token
    for request in (
        runs_pb2.ListRunsRequest(page_token=token, filter="state = PAUSED"),
        runs_pb2.ListRunsRequest(page_token=token[:-4] + "AAAA"),
        runs_pb2.ListRunsRequest(page_token="¿"),
        jobs_pb2.ListJobsRequest(page_token=token),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await service.ListRuns(request, None)  # type: ignore[arg-type]
        assert caught.value.reason == "PAGE_TOKEN"
    with pytest.raises(InvalidArgument, match="page_size"):
        await service.ListRuns(runs_pb2.ListRunsRequest(page_size=-1), None)
