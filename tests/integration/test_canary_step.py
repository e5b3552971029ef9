"""A candidate takes its share of live traffic, and the name or neither: the step of a run, the real
gateway, coordinator, store and Redis; shards that follow a script and serve what is wanted."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

import shown_runs
from gateway_stages import DIGEST, Shard, Stack, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.coordinator.run_messages import run_message
from plinth.coordinator.runs import RunRecords
from plinth.coordinator.service import build
from plinth.coordinator.steps import trial
from plinth.gateway.generation.revisions import MODEL_HEADER
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.shared.canary import Canaries
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from plinth.shared.records import DeploymentRecords
from plinth.shared.rpc.status import from_rpc_error
from plinth.shared.stage import StageContext, run_stage
from plinth.shared.store import ArtifactStore
from plinth.v1 import deployments_pb2, deployments_pb2_grpc, runs_pb2, runs_pb2_grpc

NEW = "sha256:" + "cd" * 32
TESTS = Path(__file__).parents[1]


# What a hundred requests of the canary can decide by; other work on this machine would decide by
# times.
COARSE = {"error_share_above_at_most": 0.1, "ttft_p95_ratio_at_most": None}


def pipeline(**fields: Any) -> str:
    settings = {"share": 0.1, "requests": 100, "seconds": 120, "require": COARSE, **fields}
    trial = {"kind": "canary", "model": "chat@2", "name": "chat", **settings}
    return json.dumps({"name": "ship", "steps": {"trial": trial}})


class Cluster:
    """A stack whose inference shards follow the deployments on the store, as the reconciler's do:
    a successor is up before its predecessor goes."""

    def __init__(self, stack: Stack, redis: Any) -> None:
        self.stack, self.redis = stack, redis
        self.store = ArtifactStore(stack.settings.store())
        self.deployments = DeploymentRecords(self.store)
        self.canaries = Canaries(redis)
        self.behaviour: dict[str, Any] = {}  # of the candidate's shards
        self.served = {("chat", "chat@1", 0): "shard-0"}
        self.client = httpx.AsyncClient(
            base_url=stack.url, headers={"Authorization": f"Bearer {stack.key}"}, timeout=PATIENCE_S
        )
        self._ids = itertools.count()
        self.over = asyncio.Event()

    def publish(self, folder: Path) -> None:
        for version in ("one", "two"):
            (folder / version).mkdir()
            (folder / version / "config.json").write_text(json.dumps({"version": version}))
            self.store.publish("chat", "model", folder / version)
        self.store.set_alias("chat", "prod", 1)
        self.deployments.put(internal.DeploymentRecord(name="chat", artifact="chat@1", shards=1))

    async def follow(self) -> None:
        """Until it is over: a replica that is started or stopped half-way would leak."""
        while not self.over.is_set():
            wanted = {
                (d.name, d.artifact, number)
                for d in await asyncio.to_thread(self.deployments.list)
                for number in range(d.shards)
            }
            for key in wanted - self.served.keys():
                name, artifact, _ = key
                new = artifact == "chat@2"
                shard = Shard(digest=NEW, **self.behaviour) if new else Shard()
                self.served[key] = id = f"replica-{next(self._ids)}"
                await self.stack.add_shard(id, shard, model=name, artifact=artifact)
            for key in self.served.keys() - wanted:
                await self.stack.replicas[self.served.pop(key)].stop()
            for id in self.served.values():
                running = self.stack.shards[id].running
                self.stack.replicas[id].fields["running"] = str(running)
            await asyncio.sleep(0.02)

    # -- what clients do -----------------------------------------------------------------------

    async def ask(self) -> tuple[str, str]:
        """(revision, id) of one answer."""
        ask = {"model": "chat", "prompt": "Say it", "max_tokens": 2, "seed": 1}
        answer = await self.client.post("/v1/completions", json=ask)
        assert answer.status_code == 200, answer.text
        return answer.headers[MODEL_HEADER], answer.json()["id"]

    async def traffic(
        self, count: int, good: dict[str, float] | None = None, at_a_time: int = 25
    ) -> Counter[str]:
        """Requests by revision. good: share of good verdicts that each revision earns."""
        told, earned = Counter[str](), Counter[str]()
        while told.total() < count:
            asks = [self.ask() for _ in range(min(at_a_time, count - told.total()))]
            for revision, response_id in await asyncio.gather(*asks):
                told[revision] += 1
                if good is not None:
                    # Spread evenly, so that the figures are what they are by construction.
                    verdict = int(told[revision] * good[revision]) > earned[revision]
                    earned[revision] += verdict
                    await self.verdict(response_id, verdict)
        return told

    async def verdict(self, response_id: str, good: bool) -> None:
        request = deployments_pb2.ReportOutcomeRequest(
            name="deployments/chat", response_id=response_id, good=good
        )
        try:
            await self.call("ReportOutcome", request)
        except grpc.aio.AioRpcError as error:  # when no canary is on there is nothing to judge
            assert isinstance(from_rpc_error(error), NotFound | FailedPrecondition)

    async def stream(self, tokens: int) -> tuple[str, str]:
        """(revision, text) of one long answer."""
        ask = {"model": "chat", "prompt": "Go on", "max_tokens": tokens, "seed": 1, "stream": True}
        async with self.client.stream("POST", "/v1/completions", json=ask) as response:
            sent = (await response.aread()).decode()
            assert "[DONE]" in sent, sent[-300:]
        events = [line[6:] for line in sent.splitlines() if line.startswith("data: {")]
        text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
        return response.headers[MODEL_HEADER], text

    async def call(self, method: str, request: Any, key: str = "") -> Any:
        """One of the coordinator's calls through the gateway's gRPC door."""
        async with grpc.aio.insecure_channel(self.stack.grpc_address) as channel:
            runs = hasattr(runs_pb2_grpc.RunServiceServicer, method)
            stub: Any = (
                runs_pb2_grpc.RunServiceStub(channel)
                if runs
                else deployments_pb2_grpc.DeploymentServiceStub(channel)
            )
            metadata = (("authorization", f"Bearer {key or self.stack.key}"),)
            return await getattr(stub, method)(request, metadata=metadata)

    # -- the run -------------------------------------------------------------------------------

    async def submit(self, run_id: str = "r1", **fields: Any) -> None:
        request = shown_runs.create_run(run_id, pipeline(**fields))
        await self.call("CreateRun", request)

    async def run(self, run_id: str = "r1") -> runs_pb2.Run:
        return run_message(await RunRecords(self.redis).get(run_id))

    async def end(self, run_id: str = "r1") -> runs_pb2.Run:
        async with asyncio.timeout(PATIENCE_S):
            while not (run := await self.run(run_id)).status.HasField("end_time"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return run

    async def route(self, state: str) -> None:
        """Waits until the canary's route is in this state."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                now = await self.canaries.state("chat")
                if now is not None and now.state == state:
                    return
                run = await self.run()
                assert not run.status.HasField("end_time"), run.status.error
                await asyncio.sleep(0.02)

    async def evidence(self) -> dict[str, Any]:
        """What the gate on errors has concluded so far, once it has."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                now = await self.canaries.state("chat")
                if now is not None and now.evidence:
                    found: dict[str, Any] = json.loads(now.evidence)
                    shown = found["shown"]["error_share_above_at_most"]
                    evidence: dict[str, Any] = shown["evidence"]
                    if evidence["seen"]["treated"]:
                        return evidence
                await asyncio.sleep(0.02)

    async def wanted(self) -> dict[str, str]:
        """What is to be served: artifact by deployment."""
        listed = await asyncio.to_thread(self.deployments.list)
        return {deployment.name: deployment.artifact for deployment in listed}

    async def promoted(self) -> None:
        assert await self.wanted() == {"chat": "chat@2"}
        assert await asyncio.to_thread(self.store.aliases, "chat") == {"prod": 2}
        assert await self.traffic(20) == {"chat@2": 20}

    async def rolled_back(self) -> None:
        assert await self.wanted() == {"chat": "chat@1"}
        assert await asyncio.to_thread(self.store.aliases, "chat") == {"prod": 1}
        assert await self.traffic(20) == {"chat@1": 20}


@asynccontextmanager
async def cluster(tmp_path: Path, redis_server: str, redis: Any) -> AsyncIterator[Cluster]:
    (tmp_path / "models").mkdir()
    async with running_stack(tmp_path / "data", redis_server, drain_s=5) as stack:
        assert stack.shard.digest == DIGEST
        made = Cluster(stack, redis)
        await asyncio.to_thread(made.publish, tmp_path / "models")
        following = asyncio.create_task(made.follow())
        try:
            async with made.client:
                yield made
            assert not following.done(), following.exception()
        finally:
            made.over.set()
            await asyncio.gather(following, return_exceptions=True)


@asynccontextmanager
async def coordinator(made: Cluster) -> AsyncIterator[None]:
    """A replica in this process, on its real server."""
    context = await StageContext.open(made.stack.settings, stage="coordinator")
    running = await run_stage(context, build(context))
    try:
        yield
    finally:
        await running.stop(5)
        await context.close()


@pytest.fixture(autouse=True)
def _idle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_IDLE_S", 1.2)  # the scripted shards tell their load twice a second


JUDGED = {**COARSE, "good_share_below_at_most": 0.05, "verdicts": 100}


async def test_worse_weights_roll_back_and_had_no_more_than_their_share(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    """Their answers come as fast and as surely, and people like them less."""
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        await made.submit(require=JUDGED)
        await made.route("open")
        good = {"chat@1": 0.8, "chat@2": 0.6}
        told = await made.traffic(1000, good)
        assert told.total() == 1000
        assert 0 < told["chat@2"] <= 120
        state = await made.canaries.state("chat")
        assert state is not None
        assert abs(state.given / state.asked - 0.1) <= 0.02
        run = await made.end()
        assert run.status.state == runs_pb2.RUN_STATE_FAILED
        assert "chat@2 is rolled back, 'chat' stays chat@1" in run.status.error
        assert "verdicts on the canary were good" in run.status.error
        await made.rolled_back()


async def test_better_weights_reach_prod_and_no_stream_breaks(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        await made.submit(require=JUDGED, requests=None)
        await made.route("open")
        told = await made.traffic(990, {"chat@1": 0.8, "chat@2": 0.9})
        assert told == {"chat@1": 891, "chat@2": 99}
        # A long answer of the old weights is still going on when the decision falls.
        made.stack.shards["shard-0"].delay_s = 0.005
        long = asyncio.create_task(made.stream(1500))
        await until(lambda: made.stack.shards["shard-0"].running == 1)
        told += await made.traffic(9, {"chat@1": 0.8, "chat@2": 0.9})
        assert told.total() == 999
        assert told["chat@2"] == 100
        await made.route("promoted")
        assert await made.traffic(10) == {"chat@2": 10}
        assert not long.done()
        assert "shard-0" in made.served.values()
        assert await long == ("chat@1", script_text(1, 0, 1500))
        run = await made.end()
        assert run.status.state == runs_pb2.RUN_STATE_SUCCEEDED, run.status.error
        figures = shown_runs.figures(run.status.steps[0])
        assert (figures["asked"], figures["given"]) == (1000, 100)
        assert figures["canary"]["good"] == 89
        assert figures["canary"]["ttft_p95_s"] > 0
        assert shown_runs.made(run.status.steps[0]) == "chat@2"
        await made.promoted()
        # Once more: there is nothing to do, and that is what the run says.
        await made.submit("r2")
        assert (await made.end("r2")).status.steps[0].state == runs_pb2.STEP_STATE_REUSED


async def test_weights_that_fail_roll_back_early_and_no_client_sees_it(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        made.behaviour = {"fails": True}
        await made.submit()
        await made.route("open")
        assert await made.traffic(300) == {"chat@1": 300}
        run = await made.end()
        assert run.status.state == runs_pb2.RUN_STATE_FAILED
        assert "requests of the canary failed, 0 of" in run.status.error
        await made.rolled_back()


async def test_slow_weights_roll_back(tmp_path: Path, redis_server: str, redis_client: Any) -> None:
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        made.behaviour = {"first_token_s": 3.0}  # also where this machine is busy
        times = {**COARSE, "ttft_p95_ratio_at_most": 2.0}
        await made.submit(share=0.5, requests=None, require=times)
        await made.route("open")
        while not (run := await made.run()).status.HasField("end_time"):
            await made.traffic(30)
        assert run.status.state == runs_pb2.RUN_STATE_FAILED
        assert "first tokens came within" in run.status.error
        await made.rolled_back()


async def test_too_little_traffic_promotes_nothing(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        await made.submit(seconds=1.0)
        run = await made.end()
        assert "undecided after 0 requests of the canary in" in run.status.error
        assert "0 of about 32 requests of the canary" in run.status.error
        await made.rolled_back()


async def test_a_cancelled_run_leaves_no_canary(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        await made.submit()
        await made.route("open")
        # What it takes is told before there is anything to count.
        while "a decision takes" not in (detail := (await made.run()).status.steps[0].detail):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert "at a share of 0.1, of requests 32 where 0% fail, 56 where 1% fail" in detail
        await made.submit("r2")  # one at a time
        assert "'chat' has a canary already" in (await made.end("r2")).status.error
        assert await made.wanted() == {"chat": "chat@1", "chat.canary": "chat@2"}
        await made.call("CancelRun", runs_pb2.CancelRunRequest(name="runs/r1"))
        assert (await made.end()).status.state == runs_pb2.RUN_STATE_CANCELLED
        await made.rolled_back()


async def test_a_baseline_that_changes_ends_the_trial(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        await made.submit()
        await made.route("open")
        await asyncio.to_thread(made.deployments.delete, "chat")
        assert "nothing is served as 'chat'" in (await made.end()).status.error
        assert await made.wanted() == {}


async def test_who_may_judge_what(tmp_path: Path, redis_server: str, redis_client: Any) -> None:
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        await made.submit(share=0.5)
        await made.route("open")
        revision, response_id = await made.ask()
        answer = deployments_pb2.ReportOutcomeRequest(
            name="deployments/chat", response_id=response_id, good=True
        )
        by_request = deployments_pb2.ReportOutcomeRequest(
            name="deployments/chat", response_id=response_id.removeprefix("cmpl-"), good=True
        )
        assert by_request != answer
        for said in (answer, answer, by_request):  # said more than once, counted once
            told = await made.call("ReportOutcome", said)
            assert deployments_pb2.RevisionRole.Name(told.role) == (
                "REVISION_ROLE_CANARY" if revision == "chat@2" else "REVISION_ROLE_STABLE"
            )
        by_revision = deployments_pb2.ReportOutcomeRequest(
            name="deployments/chat", revision="chat@2", good=False
        )
        assert (
            await made.call("ReportOutcome", by_revision)
        ).role == deployments_pb2.REVISION_ROLE_CANARY
        state = await made.canaries.state("chat")
        assert state is not None
        assert sum(tally.good + tally.bad for tally in state.tallies.values()) == 2
        for wrong, error in (
            ({}, InvalidArgument),
            ({"response_id": "no id"}, InvalidArgument),
            ({"response_id": "x" * 200}, InvalidArgument),
            ({"response_id": "chatcmpl-unknown"}, NotFound),
            ({"revision": "chat@7"}, NotFound),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made.call(
                    "ReportOutcome",
                    deployments_pb2.ReportOutcomeRequest(name="deployments/chat", **wrong),
                )
            told = from_rpc_error(caught.value)
            assert isinstance(told, error)
            assert told.field == ("revision" if "revision" in wrong else "response_id")
        # Another tenant, which may only ask, judges neither others' answers nor revisions.
        key = await a_key(made, "inference")
        for request, wanted in ((answer, NotFound), (by_revision, PermissionDenied)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made.call("ReportOutcome", request, key)
            assert isinstance(from_rpc_error(caught.value), wanted)


async def a_key(made: Cluster, *scopes: str) -> str:
    from plinth.gateway.keys.api_keys import KeyStore

    return (await KeyStore(made.redis).create("another", scopes))[0]


async def test_a_canary_never_outlives_its_run(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    """Redis lost the run with all else; what is on the store is found and taken down."""
    async with cluster(tmp_path, redis_server, redis_client) as made:
        left = internal.DeploymentRecord(
            name="chat.canary",
            artifact="chat@2",
            canary_of="chat",
            owner="gone.trial.0123456789abcdef",
            stable="chat@1",
            traffic_share=0.2,
        )
        await asyncio.to_thread(made.deployments.put, left)
        assert len(await made.wanted()) == 2
        async with coordinator(made):
            async with asyncio.timeout(PATIENCE_S):
                while len(await made.wanted()) == 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        await made.rolled_back()


async def test_killed_in_the_middle_it_goes_on(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    """kill -9 while it watches, and again once it has decided."""
    async with cluster(tmp_path, redis_server, redis_client) as made:
        arguments = [str(made.stack.settings.data_dir), redis_server, "1.0"]

        async def started() -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(TESTS / "coordinator_process.py"),
                *arguments,
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE_S):
                assert await process.stdout.readline() == b"ready\n"
            return process

        process = await started()
        try:
            await made.submit()
            await made.route("open")
            told = await made.traffic(200)
            kept = await made.evidence()
            process.kill()
            await process.wait()
            told += await made.traffic(50)  # goes on being shared while nobody leads
            assert told == {"chat@1": 225, "chat@2": 25}
            assert 0 < kept["seen"]["treated"] <= 20
            assert await made.evidence() == kept
            process = await started()
            told += await made.traffic(150)
            assert told["chat@2"] >= 40
            await made.route("promoted")
            assert (await made.evidence())["seen"]["treated"] >= 30
            process.kill()
            await process.wait()
            assert await made.wanted() == {"chat": "chat@1", "chat.canary": "chat@2"}
            assert await made.traffic(5) == {"chat@2": 5}
            process = await started()
            run = await made.end()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        assert run.status.state == runs_pb2.RUN_STATE_SUCCEEDED, run.status.error
        await made.promoted()


async def test_a_fork_over_the_command_line(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    """Through the gateway's door, as a person would: what was published stays, the rest is new."""
    text = json.dumps(
        {
            "name": "ship",
            "steps": {
                "first": {"kind": "publish", "model": "chat@2", "alias": "next"},
                "then": {"kind": "publish", "model": "$first", "alias": "blue"},
            },
        }
    )
    async with cluster(tmp_path, redis_server, redis_client) as made, coordinator(made):
        await made.call("CreateRun", shown_runs.create_run("r1", text))
        assert (await made.end()).status.state == runs_pb2.RUN_STATE_SUCCEEDED
        code, out = await plinth(made, "runs", "fork", "r1", "--from", "then", "--run-id", "f1",
                                 "--set", "steps.then.alias=green")  # fmt: skip
        assert code == 0, out
        run = await made.end("f1")
        assert (run.status.forked_from, run.status.forked_from_step) == ("runs/r1", "then")
        assert [step.state for step in run.status.steps] == [
            runs_pb2.STEP_STATE_REUSED,
            runs_pb2.STEP_STATE_SUCCEEDED,
        ]
        aliases = await asyncio.to_thread(made.store.aliases, "chat")
        assert aliases == {"prod": 1, "next": 2, "blue": 2, "green": 2}
        code, out = await plinth(made, "runs", "fork", "r1", "--from", "than")
        assert code != 0
        assert "did you mean then?" in out


async def plinth(made: Cluster, *arguments: str) -> tuple[int | None, str]:
    settings = made.stack.settings
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from plinth.cli.main import app; app()",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={
            **os.environ,
            "PLINTH_DATA_DIR": str(settings.data_dir),
            "PLINTH_REDIS_URL": made.stack.redis_url,
            "PLINTH_GATEWAY__GRPC_PORT": str(settings.gateway.grpc_port),
        },
    )
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode, out.decode()
