"""Traces as a collector gets them: one from a client's request to the shard, and one through the
queue to the trainer; and nothing at all where no endpoint is set."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from redis.asyncio import Redis

from gateway_stages import TOKEN, Shard, Stack, answering, gateway_settings, running_stack
from job_specs import create_job, prepare_spec
from otlp_receiver import OtlpReceiver, Span, ancestors
from patience import PATIENCE_S
from plinth.cluster.layout import settings_environment
from plinth.shared import tracing
from plinth.shared.errors import InvalidArgument
from plinth.shared.queue import Queue
from plinth.shared.rpc.interceptors import interceptors
from plinth.shared.settings import load_settings
from plinth.trainer.service import build as build_trainer
from plinth.v1 import jobs_pb2
from plinth.v1.jobs_pb2_grpc import JobServiceStub
from stage_replicas import Stages

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASK = {"model": "chat", "messages": [{"role": "user", "content": "secret words"}], "max_tokens": 5}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[OtlpReceiver]:
    """This process traces to it."""
    with OtlpReceiver() as made:
        settings = load_settings(data_dir=tmp_path, telemetry={"otlp_endpoint": made.endpoint})
        tracing.start(settings, "test")
        yield made
        tracing.stop()


@pytest.fixture
async def stack(
    receiver: OtlpReceiver, tmp_path: Path, redis_server: str, redis_client: Redis
) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path / "data", redis_server, shards=2) as made:
        yield made


def stages(spans: list[Span]) -> set[str]:
    return {span.attributes["plinth.stage"] for span in spans if "plinth.stage" in span.attributes}


async def chat(stack: Stack, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        headers["authorization"] = f"Bearer {stack.key}"
        url = f"{stack.url}/v1/chat/completions"
        return await client.post(url, json=ASK, headers=headers)


async def whole(receiver: OtlpReceiver, root: str) -> list[Span]:
    """The trace of that root, once the root has come: it ends last."""
    wait = receiver.wait
    return await asyncio.to_thread(
        wait, lambda: receiver.trace_with(lambda span: span.name == root)
    )


async def test_from_the_rest_door_to_the_shard(stack: Stack, receiver: OtlpReceiver) -> None:
    answer = await chat(stack)
    assert answer.status_code == 200
    trace = await whole(receiver, "POST /v1/chat/completions")
    assert stages(trace) == {"gateway", "tokenizer", "inference"}
    root = next(span for span in trace if not span.parent)
    assert root.name == "POST /v1/chat/completions"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["plinth.request_id"] == answer.headers["x-request-id"]
    shard = next(span for span in trace if span.attributes["plinth.stage"] == "inference")
    assert shard.name == "plinth.internal.v1.InferenceService/Generate"
    assert shard.parent == root.id
    assert shard.attributes["plinth.request_id"] == root.attributes["plinth.request_id"]
    assert shard.attributes["rpc.grpc.status_code"] == "OK"
    assert "secret" not in repr(receiver.spans)


async def test_a_client_s_own_trace_goes_on(stack: Stack, receiver: OtlpReceiver) -> None:
    await chat(stack, traceparent=CLIENT)
    await chat(stack, traceparent="00-nonsense")
    spans = await asyncio.to_thread(receiver.wait, lambda: roots(receiver, 2))
    assert {(span.trace, span.parent) for span in spans if span.parent} == {
        (CLIENT.split("-")[1], CLIENT.split("-")[2])
    }


def roots(receiver: OtlpReceiver, count: int) -> list[Span]:
    found = [span for span in receiver.spans if span.name == "POST /v1/chat/completions"]
    return found if len(found) == count else []


async def test_a_shard_that_is_lost_shows_in_the_trace(
    receiver: OtlpReceiver, tmp_path: Path, redis_server: str, redis_client: Redis
) -> None:
    first = Shard(fails=True)
    async with running_stack(tmp_path / "data", redis_server, first=first) as stack:
        assert (await chat(stack)).status_code == 500
        trace = await whole(receiver, "POST /v1/chat/completions")
    errors = {span.attributes["plinth.stage"]: span.error for span in trace if span.error}
    assert errors == {"gateway": "500", "inference": "INTERNAL"}


async def test_a_queued_job_belongs_to_the_trace_of_who_submitted_it(
    stack: Stack, receiver: OtlpReceiver
) -> None:
    settings = load_settings(
        data_dir=stack.settings.data_dir, redis_url=stack.redis_url, cluster_token=TOKEN
    )
    trainers = Stages(settings)
    await trainers.add("trainer", build_trainer, launcher="processes")
    try:
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
            stub = JobServiceStub(channel)
            prepare = prepare_spec(builtin="stdlib", max_bytes=100_000)
            spec = jobs_pb2.JobSpec(output_name="text", prepare=prepare)
            await stub.CreateJob(
                create_job("job-1", spec),
                metadata=(("authorization", f"Bearer {stack.key}"),),
            )
            trace = await whole(receiver, "trainer-jobs process")
    finally:
        await trainers.stop()
    assert stages(trace) == {"gateway", "trainer"}
    job = next(span for span in trace if span.name == "trainer-jobs process")
    assert job.attributes["messaging.message.id"] == "job-1"
    assert ancestors(job, trace) == ["plinth.v1.JobService/CreateJob"] * 2
    assert job.error is None


async def test_a_failed_item_is_an_error_by_its_reason(
    receiver: OtlpReceiver, redis_client: Redis
) -> None:
    queue = Queue(redis_client, "traced")
    with tracing.span("producer"):
        await queue.add("a", b"")
        parent = tracing.traceparent()
    lease = await queue.claim("me", wait_s=1)
    assert lease is not None and lease.trace == parent
    with pytest.raises(InvalidArgument), lease.traced():
        raise InvalidArgument("what a client said")
    await asyncio.to_thread(tracing.stop)
    (item,) = [span for span in receiver.spans if span.name == "traced process"]
    assert (item.trace, item.parent) == tuple(parent.split("-")[1:3])
    assert item.error == "InvalidArgument"


async def test_the_gateway_s_process_sends_its_last_spans(
    tmp_path: Path, redis_server: str, redis_client: Redis
) -> None:
    with OtlpReceiver() as receiver:
        settings = gateway_settings(tmp_path / "data", redis_server)
        environment = {**os.environ, **settings_environment(settings)}
        environment["PLINTH_TELEMETRY__OTLP_ENDPOINT"] = receiver.endpoint
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "plinth.gateway", env=environment, stderr=subprocess.PIPE
        )
        url = f"http://127.0.0.1:{settings.gateway.port}"
        await answering(f"{url}/healthz")
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            assert (await client.get(f"{url}/v1/models")).status_code == 401
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 0
        (span,) = receiver.spans
        assert (span.service, span.name) == ("plinth-gateway", "GET /v1/models")
        assert span.attributes["http.response.status_code"] == 401


async def test_a_collector_that_is_away_delays_no_end(tmp_path: Path) -> None:
    telemetry = {"otlp_endpoint": "http://127.0.0.1:9"}
    tracing.start(load_settings(data_dir=tmp_path, telemetry=telemetry), "test")
    with tracing.span("lost"):
        pass
    async with asyncio.timeout(tracing.STOP_S + 3):
        await asyncio.to_thread(tracing.stop)
    assert not tracing.on()


# redis-py and FastAPI import OpenTelemetry's API where they find it; the exporter is ours alone.
async def test_off_the_exporter_is_not_imported() -> None:
    modules = "plinth.gateway.__main__, plinth.shared.stage, plinth.trainer.consumer"
    code = (
        f"import sys, {modules}\n"
        "from plinth.shared import tracing\n"
        "from plinth.shared.settings import load_settings\n"
        "tracing.start(load_settings(), 'x')\n"
        "with tracing.span('a'):\n"
        "    tracing.note('b', 1); tracing.event('c'); tracing.failed('d')\n"
        "    assert tracing.traceparent() == ''\n"
        "tracing.stop()\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry.exporter')])"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, check=True
    )
    assert done.stdout.strip() == b"[]"


async def test_off_there_are_no_spans(redis_client: Redis) -> None:
    assert tracing.span("a") is tracing.span("b"), "nothing is made for a span"
    queue = Queue(redis_client, "untraced")
    await queue.add("a", b"")
    assert b"trace" not in (await redis_client.hget(queue._keys.items, "a") or b"")
    lease = await queue.claim("me", wait_s=1)
    assert lease is not None and lease.trace == ""
    assert len(interceptors(methods=frozenset(), scopes={}, validators={}, authenticate=_nobody,
                            default_deadline_s=1, slow_reader_s=60)) == 7  # fmt: skip


async def _nobody(_metadata: object) -> None:
    return None


@pytest.mark.parametrize(
    ("endpoint", "what"),
    [
        ("collector:4318", "http://collector:4318"),
        ("grpc://collector:4317", "OTLP over HTTP"),
        ("http://user:pass@collector:4318", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_an_address_that_is_none(tmp_path: Path, endpoint: str, what: str) -> None:
    with pytest.raises(InvalidArgument, match=what) as raised:
        load_settings(data_dir=tmp_path, telemetry={"otlp_endpoint": endpoint})
    assert "telemetry.otlp_endpoint" in str(raised.value)
