"""What `helm test` runs, against a real gateway: passes when all is well, says what is not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway_stages import Stack, running_stack
from plinth.cluster.ports import free_port
from plinth.cluster.trials import chaos, smoke
from plinth.cluster.trials.pods import RIGHTS, Pods
from plinth.cluster.trials.visitor import GatewayUrls, Visitor, visit
from plinth.gateway.keys.api_keys import KeyStore
from plinth.reward.service import build as build_reward
from plinth.shared.errors import (
    FailedPrecondition,
    Internal,
    NotFound,
    PermissionDenied,
    PlinthError,
    Unavailable,
)
from plinth.shared.stage import StageContext, run_stage
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import stop_metrics_server

SELECTOR = "app.kubernetes.io/component=inference"


class Api:
    """The two calls of a Kubernetes API server that a trial makes; `killed` runs at a deletion."""

    def __init__(self, killed: Callable[[], None] = lambda: None, status: int = 200) -> None:
        self.asked: list[tuple[str, str, dict[str, list[str]], str]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Quiet."""

            def answer(self, body: object) -> None:
                split = urlsplit(self.path)
                token = self.headers["Authorization"]
                api.asked.append((self.command, split.path, parse_qs(split.query), token))
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self) -> None:
                shards = [("other", "10.0.0.9"), ("shard-a", "127.0.0.1")]
                items = [
                    {"metadata": {"name": name}, "status": {"podIP": ip}} for name, ip in shards
                ]
                self.answer({"items": items})

            def do_DELETE(self) -> None:
                killed()
                self.answer({})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def serving(api: Api) -> Iterator[Api]:
    thread = threading.Thread(target=api.server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        api.server.shutdown()
        api.server.server_close()
        thread.join()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("the-token\n")
    (folder / "namespace").write_text("models")
    return folder


@asynccontextmanager
async def visiting(stack: Stack) -> AsyncIterator[Visitor]:
    settings = stack.settings.model_copy()
    async with visit(settings, GatewayUrls(stack.url, stack.grpc_address)) as visitor:
        yield visitor


@asynccontextmanager
async def reward_replica(stack: Stack) -> AsyncIterator[None]:
    context = await StageContext.open(stack.settings, stage="reward")
    running = await run_stage(context, build_reward(context))
    try:
        yield
    finally:
        await running.stop(5)
        await context.close()
        stop_metrics_server()


async def test_smoke_sees_a_platform_that_works_and_leaves_no_key(
    tmp_path: Path,
    redis_server: str,
    redis_client: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, reward_replica(stack):
        async with visiting(stack) as visitor:
            await smoke.run(visitor, "")
            keys = await KeyStore(visitor.redis).list()
        told = capsys.readouterr().out
        assert [line.split()[0] for line in told.splitlines()] == ["REST", "REST", "gRPC", "queue"]
        mine = [key for key in keys if key.tenant == "helm-test"]
        assert [key.revoked for key in mine] == [False]
        async with visiting(stack) as visitor:
            keys = await KeyStore(visitor.redis).list()
        assert [key.revoked for key in keys if key.tenant == "helm-test"] == [True, False]


async def test_smoke_says_what_is_missing(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, visiting(stack) as visitor:
        with pytest.raises(FailedPrecondition, match="mine is not served"):
            await smoke.run(visitor, "mine")
        stack.shard.fails = True
        with pytest.raises(Unavailable, match="/v1/completions answered 500"):
            await smoke.run(visitor, "chat")


async def test_what_ends_an_answer_over_grpc_is_told_as_what_ends_one_over_rest(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    async with running_stack(tmp_path, redis_server) as stack:

        async def end(model: str, grpc: str = stack.grpc_address) -> PlinthError:
            with pytest.raises(PlinthError) as caught:
                async with visit(stack.settings, GatewayUrls(stack.url, grpc)) as visitor:
                    async for _ in visitor.tokens(model, "?", 2, 1):
                        pass
            return caught.value

        assert isinstance(await end("nobody"), NotFound)
        away = await end("chat", f"127.0.0.1:{free_port()}")
        assert isinstance(away, Unavailable)
        assert "can't be reached" in away.message
        stack.shard.fails = True
        assert isinstance(await end("chat"), Internal)


async def test_smoke_fails_where_no_one_takes_jobs(
    tmp_path: Path, redis_server: str, redis_client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "JOB_S", 0.3)
    async with running_stack(tmp_path, redis_server) as stack, visiting(stack) as visitor:
        with pytest.raises(PlinthError, match="has not ended"):
            await smoke.run(visitor, "")


@asynccontextmanager
async def busy_shards(stack: Stack) -> AsyncIterator[None]:
    """Scripted shards that announce what they run, as real ones do."""

    async def tell() -> None:
        while True:
            for id, shard in stack.shards.items():
                stack.replicas[id].fields["running"] = str(shard.running)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        await cancel_and_wait(task)


async def test_chaos_kills_the_pod_under_the_stream_and_loses_nothing(
    tmp_path: Path,
    redis_server: str,
    redis_client: object,
    account: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loop = asyncio.get_running_loop()
    async with running_stack(tmp_path, redis_server, shards=2) as stack, busy_shards(stack):
        for shard in stack.shards.values():
            shard.delay_s = 0.01

        def kill() -> None:
            victim = next(id for id, shard in stack.shards.items() if shard.running)
            stopping = stack.replicas[victim].stop(withdraw=False)
            asyncio.run_coroutine_threadsafe(stopping, loop).result(10)

        with serving(Api(kill)) as api:
            async with visiting(stack) as visitor:
                await chaos.run(visitor, Pods(api.url, account), SELECTOR, "", 200)
    assert "killed  shard-a" in capsys.readouterr().out
    (listed, path, query, token), (deleted, where, how, _) = api.asked
    assert (listed, path, token) == ("GET", "/api/v1/namespaces/models/pods", "Bearer the-token")
    assert query == {"labelSelector": [SELECTOR]}
    assert (deleted, where) == ("DELETE", "/api/v1/namespaces/models/pods/shard-a")
    assert how == {"gracePeriodSeconds": ["0"]}


async def test_chaos_tells_a_difference(
    tmp_path: Path, redis_server: str, redis_client: object, account: Path
) -> None:
    """An answer that is another after the death is a failure, at the token where it parts."""
    async with running_stack(tmp_path, redis_server, shards=2) as stack, busy_shards(stack):
        for shard in stack.shards.values():
            shard.delay_s = 0.01
        seen: list[int] = []

        class Forgetful(Visitor):
            async def tokens(self, *args: object, **kwargs: object) -> AsyncIterator[int]:  # type: ignore[override]
                seen.append(len(seen))
                async for at, token in _numbered(super().tokens(*args, **kwargs)):  # type: ignore[arg-type]
                    yield token + 1 if len(seen) == 2 and at == 100 else token

        with serving(Api()) as api:
            async with visiting(stack) as visitor:
                visitor.__class__ = Forgetful
                with pytest.raises(Internal, match="differs from token 100 on, of 150"):
                    await chaos.run(visitor, Pods(api.url, account), SELECTOR, "chat", 150)


async def _numbered(tokens: AsyncIterator[int]) -> AsyncIterator[tuple[int, int]]:
    at = 0
    async for token in tokens:
        yield at, token
        at += 1


async def test_chaos_wants_a_second_shard(
    tmp_path: Path, redis_server: str, redis_client: object, account: Path
) -> None:
    nobody = Pods("http://127.0.0.1:1", account)
    async with running_stack(tmp_path, redis_server) as stack, visiting(stack) as visitor:
        with pytest.raises(FailedPrecondition, match="chat has 1 shards"):
            await chaos.run(visitor, nobody, SELECTOR, "", 100)


def test_a_right_that_is_missing_is_told_with_where_it_comes_from(account: Path) -> None:
    refusal = r"list pods in models.*tests\.chaos\.enabled"
    with serving(Api(status=403)) as api, pytest.raises(PermissionDenied, match=refusal):
        Pods(api.url, account).by_address("127.0.0.1", SELECTOR)
    with serving(Api(status=500)) as api, pytest.raises(Unavailable, match="says 500"):
        Pods(api.url, account).kill("shard-a")
    with pytest.raises(FailedPrecondition, match="helm test"):
        Pods("http://127.0.0.1:1", account / "none")
    assert set(RIGHTS) == {"list", "delete"}
