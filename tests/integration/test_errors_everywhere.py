"""An error whose text nothing can hold, on each way in which errors are told: over gRPC, by REST,
and at the end of what each consumer took from its queue. None of them breaks, none is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from structlog.testing import capture_logs

from hostile_texts import NASTY
from patience import PATIENCE_S
from plinth.coordinator.preferences.work import PreferenceWorker, work_queue
from plinth.gateway.openai.sse import data
from plinth.gateway.rest.error_handlers import add_error_handlers, body_of
from plinth.internal.v1 import job_records_pb2 as rec
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc
from plinth.reward.consumer import TaskConsumer
from plinth.shared.errors import ERROR_TYPES, DataLoss, PlinthError, Unavailable, plain
from plinth.shared.queue import ItemState, Queue
from plinth.shared.registry import Registry
from plinth.shared.rewards import RewardTasks, reason_of, rewards_queue
from plinth.shared.rpc.channel import open_channel
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import Settings, load_settings
from plinth.shared.tasks import cancel_and_wait
from plinth.trainer.consumer import SAME_CRASHES, JobConsumer
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.records import JobRecords
from plinth.v1 import jobs_pb2, rewards_pb2

TOKEN = "a-cluster-token-for-tests"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


# What work may end with: errors of ours, and others that hold the same, or can say nothing.
PERMANENT: list[Exception] = [DataLoss(text, reason=text, field=text) for text in NASTY]  # type: ignore[arg-type]
TRANSIENT: list[Exception] = [Unavailable(text) for text in NASTY]  # type: ignore[arg-type]
CRASHES: list[Exception] = [
    *map(ValueError, NASTY),
    Mute(),
    UnicodeDecodeError("a", b"\xe9", 0, 1, "\udce9"),
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path)


async def ended(queue: Queue, id: str) -> ItemState:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await queue.find(id)
            if found is not None and found.state in ("dead", "completed", "delayed"):
                return found
            await asyncio.sleep(0.01)


@asynccontextmanager
async def alive(consumer: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(consumer.run())
    yield
    assert not task.done(), task.exception()
    await cancel_and_wait(task)


# -- gRPC ----------------------------------------------------------------------------------


class Refusing(tokenizer_pb2_grpc.TokenizerServiceServicer):
    error: Exception

    async def Encode(self, request: Any, context: Any) -> Any:
        raise self.error

    async def DecodeStream(self, request_iterator: Any, context: Any) -> Any:
        yield pb.DecodeStreamResponse(text="first")
        raise self.error


async def test_over_grpc(settings: Settings) -> None:
    service = Refusing()

    def add(server: Any) -> None:
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(service, server)

    served = GrpcService("plinth.internal.v1.TokenizerService", add, {"*": "tokenize"})
    server = GrpcServer([served], stage="tokenizer", settings=settings, token=TOKEN)
    address = f"127.0.0.1:{await server.start()}"
    metadata = {text: text for text in NASTY}
    try:
        async with open_channel(
            address, stage="tokenizer", settings=settings, token=TOKEN
        ) as channel:
            stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)

            async def both(kind: type[PlinthError]) -> list[PlinthError]:
                told = []
                with pytest.raises(kind) as caught:
                    await stub.Encode(pb.EncodeRequest())
                told.append(caught.value)
                with pytest.raises(kind) as caught:
                    async for _ in stub.DecodeStream(iter([pb.DecodeStreamRequest()])):
                        pass
                return [*told, caught.value]

            for kind in ERROR_TYPES.values():
                if kind is Unavailable:
                    continue  # the same as the others, and asked again four times
                for text in NASTY:
                    service.error = error = kind(text, reason=text, field=text, metadata=metadata)
                    for told in await both(kind):
                        assert told.reason[:20] == error.reason[:20]
                        assert told.message[:20] == error.message[:20] or not error.message
            with capture_logs():
                for crash in CRASHES:
                    service.error = crash
                    for told in await both(ERROR_TYPES["INTERNAL"]):
                        assert "the server's log has it" in told.message
    finally:
        await server.stop(0)


# -- REST ----------------------------------------------------------------------------------


async def test_by_rest() -> None:
    app = FastAPI()
    add_error_handlers(app)
    errors: list[Exception] = [*PERMANENT, *TRANSIENT, *CRASHES]

    @app.get("/{number}")
    async def fails(number: int) -> None:
        raise errors[number]

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for number, error in enumerate(errors):
            answer = await client.get(f"/{number}")
            assert answer.status_code == (error.http if isinstance(error, PlinthError) else 500)
            said = answer.json()["error"]
            if isinstance(error, PlinthError):
                assert said["message"] == error.message
            event = data(body_of(error)).removeprefix(b"data: ")
            assert json.loads(event)["error"]["message"] == said["message"]
        for path in ("/%ff%00/x", "/caf%e9/x", "/" + "%e8%aa%9e" * 3000 + "/x"):
            assert (await client.get(path)).status_code == 404


# -- consumers of queues -------------------------------------------------------------------


async def test_the_consumer_of_rewards(redis_client: Redis) -> None:
    queue = rewards_queue(redis_client)
    todo: dict[str, Exception] = {}

    async def score(request: rewards_pb2.ScoreRewardsRequest) -> rewards_pb2.ScoreRewardsResponse:
        raise todo[request.tokenizer]

    async def nobody(_name: str, _id: str) -> None:
        return None

    consumer = TaskConsumer("c", queue, score, nobody, tasks=2, lease_s=15.0)
    waiter = RewardTasks(redis_client, "run")
    with capture_logs():
        async with alive(consumer):
            for number, error in enumerate([*PERMANENT, *TRANSIENT, *CRASHES]):
                todo[str(number)] = error
                request = rewards_pb2.ScoreRewardsRequest(tokenizer=str(number))
                await waiter.submit(f"t.{number}", request)
                found = await ended(queue, f"t.{number}")
                assert found.state == ("dead" if isinstance(error, DataLoss) else "delayed")
                if isinstance(error, DataLoss):
                    with pytest.raises(DataLoss):
                        await waiter.result(f"t.{number}")
            await queue.add("broken", b"\xff\xff")
            assert (await ended(queue, "broken")).state == "dead"


async def test_a_reward_task_that_was_given_up_is_told_at_once_and_can_be_tried_anew(
    redis_client: Redis,
) -> None:
    queue, waiter = rewards_queue(redis_client), RewardTasks(redis_client, "run")
    request = rewards_pb2.ScoreRewardsRequest(tokenizer="t")
    errors: list[PlinthError] = [DataLoss("NaN"), Unavailable("the tokenizer is away")]
    for error in errors:
        id = error.code.lower()
        assert await waiter.submit(id, request)
        lease = await queue.claim("c", wait_s=PATIENCE_S)
        assert lease is not None
        await queue.fail(lease, reason_of(error), retry=False)
        with pytest.raises(type(error), match=error.message):
            await asyncio.wait_for(waiter.wait(id, timeout_s=10 * PATIENCE_S), PATIENCE_S)
        assert not await waiter.submit(id, request)
        found = await queue.find(id)
        assert found is not None
        assert found.state == ("waiting" if error.transient else "dead")


async def test_the_consumer_of_jobs(redis_client: Redis, tmp_path: Path) -> None:
    queue, records = Queue(redis_client, "jobs"), JobRecords(redis_client)
    todo: dict[str, Exception] = {}

    class Work:
        def __init__(self, job: rec.JobRecord, fence: int) -> None:
            self.error = todo[job.job_id]
            self.folder = JobFolder(tmp_path)

        def run(self) -> None:
            raise self.error

        def stop(self, how: str) -> None:
            return None

        def progress(self) -> None:
            return None

        def give_up(self) -> None:
            return None

    make: Callable[[Any, int], Any] = Work
    with capture_logs():
        async with alive(JobConsumer("c", queue, records, make, lease_s=15.0)):
            for number, error in enumerate([*PERMANENT, *TRANSIENT, *CRASHES]):
                job = rec.JobRecord(job_id=f"j.{number}")
                todo[job.job_id] = error
                await records.create(job)
                await queue.add(job.job_id, job.SerializeToString())
                found = await ended(queue, job.job_id)
                assert found.state == ("dead" if isinstance(error, DataLoss) else "delayed")
                told = (await records.get(job.job_id)).error
                if isinstance(error, PlinthError):
                    assert told == error.message
                else:
                    assert told.startswith(type(error).__name__)


async def test_a_crash_that_is_the_same_each_time_is_given_up(
    redis_client: Redis, tmp_path: Path
) -> None:
    queue, records = Queue(redis_client, "jobs", backoff_s=0.01), JobRecords(redis_client)
    begun: dict[str, int] = {"same": 0, "same-of-its-folder": 0, "other": 0}

    class Work:
        def __init__(self, job: rec.JobRecord, fence: int) -> None:
            self.id = job.job_id
            self.folder = JobFolder(tmp_path / "jobs" / self.id / f"attempt-{fence}")

        def run(self) -> None:
            begun[self.id] += 1
            what = {"other": begun[self.id], "same-of-its-folder": self.folder.path / "progress"}
            raise RuntimeError(f"it broke {what.get(self.id, '')}")

        def stop(self, how: str) -> None:
            return None

        def progress(self) -> None:
            return None

        def give_up(self) -> None:
            return None

    make: Callable[[Any, int], Any] = Work
    with capture_logs():
        async with alive(JobConsumer("c", queue, records, make, lease_s=15.0)):
            for id in begun:
                await records.create(rec.JobRecord(job_id=id))
                await queue.add(id, rec.JobRecord(job_id=id).SerializeToString())
            async with asyncio.timeout(PATIENCE_S):
                while begun["other"] <= SAME_CRASHES:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                for id in begun.keys() - {"other"}:
                    while (  # noqa: ASYNC110
                        await records.get(id)
                    ).state != jobs_pb2.JOB_STATE_FAILED:
                        await asyncio.sleep(0.01)
    assert begun["same"] == begun["same-of-its-folder"] == SAME_CRASHES
    assert (await records.get("same")).error == "RuntimeError: it broke "


async def test_the_consumer_of_preference_work(redis_client: Redis, settings: Settings) -> None:
    registry = Registry(redis_client)
    clients = StageClients(registry, settings, TOKEN)
    queue = work_queue(redis_client)
    wrong: list[bytes] = [b"\xff", b"{", b"[]", b"{}", b'{"kind": "sample"}', b"null", b'"\\ud800"']
    with capture_logs():
        async with alive(PreferenceWorker("w", redis_client, registry, clients)):
            for number, payload in enumerate(wrong):
                await queue.add(f"w.{number}", payload)
            for number in range(len(wrong)):
                assert (await ended(queue, f"w.{number}")).state == "dead"
    await clients.close()


async def test_a_dead_letter_is_read_as_it_was_said(redis_client: Redis) -> None:
    queue = Queue(redis_client, "letters")
    for number, text in enumerate(NASTY):
        await queue.add(str(number), b"work")
        lease = await queue.claim("c", wait_s=PATIENCE_S)
        assert lease is not None
        await queue.fail(lease, text, retry=False)
        found = await queue.find(str(number))
        assert found is not None
        assert found.reason[:500] == plain(text)[:500]
    assert len(await queue.dead_letters()) == len(NASTY)
