"""An error tells names of artifacts to those alone who may list them, whichever stage makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from job_specs import create_job, prepare_spec
from plinth.coordinator.service import build as build_coordinator
from plinth.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from plinth.reward.service import build as build_reward
from plinth.shared.errors import NotFound, PlinthError
from plinth.shared.identity import SCOPES, SYSTEM, Principal, call_scope
from plinth.shared.rpc.channel import open_channel
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext, run_stage
from plinth.tokenizer.service import build as build_tokenizer
from plinth.trainer.service import build as build_trainer
from plinth.v1 import (
    deployments_pb2,
    deployments_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    rewards_pb2,
    rewards_pb2_grpc,
    runs_pb2_grpc,
)
from shown_runs import create_run

SECRET = "unreleased-project"
LISTS = {"artifacts", "admin"}


def publish(context: StageContext, folder: Path) -> None:
    (folder / "a.txt").write_text("a")
    for _ in range(2):
        context.store.publish(SECRET, "corpus", folder)
    context.store.set_alias(SECRET, "hidden-alias", 1)


def told(context: StageContext, reference: str) -> str:
    with pytest.raises(NotFound) as caught:
        context.store.get(reference)
    return caught.value.message


@pytest.fixture
async def context(redis_server: str, redis_client: object, tmp_path: Path) -> Any:
    settings = load_settings(data_dir=tmp_path / "data", redis_url=redis_server)
    made = await StageContext.open(settings, stage="tokenizer")
    (tmp_path / "files").mkdir()
    await asyncio.to_thread(publish, made, tmp_path / "files")
    yield made
    await made.close()


@pytest.mark.parametrize("scope", [*sorted(SCOPES), "", "system"])
async def test_only_who_may_list_reads_names_out_of_an_error(
    context: StageContext, scope: str
) -> None:
    principal = Principal("t", "k", frozenset({scope} - {""}))
    with call_scope(principal=SYSTEM if scope == "system" else principal):
        nobody = await asyncio.to_thread(told, context, "nobody")
        alias = await asyncio.to_thread(told, context, f"{SECRET}:nobody")
        version = await asyncio.to_thread(told, context, f"{SECRET}@9")
    listed = (SECRET in nobody, "hidden-alias" in alias, "latest is 1" in version)
    assert listed == (scope in LISTS,) * 3
    assert SECRET not in told(context, "nobody")  # in the background: its error is told later


async def test_each_stages_error_keeps_to_it(context: StageContext) -> None:
    async def tokenizer(channel: grpc.aio.Channel) -> None:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        await stub.Encode(tokenizer_pb2.EncodeRequest(model="nobody", texts=["a"]))

    async def trainer(channel: grpc.aio.Channel) -> None:
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        prepare = prepare_spec(corpus="nobody", tokenizer="nobody")
        spec = jobs_pb2.JobSpec(output_name="x", prepare=prepare)
        await stub.CreateJob(create_job("j", spec))

    async def runs(channel: grpc.aio.Channel) -> None:
        stub = runs_pb2_grpc.RunServiceStub(channel)
        text = "{name: p, steps: {one: {kind: data, corpus: nobody, tokenizer: nobody}}}"
        await stub.CreateRun(create_run("r", text))

    async def deployments(channel: grpc.aio.Channel) -> None:
        stub = deployments_pb2_grpc.DeploymentServiceStub(channel)
        spec = deployments_pb2.DeploymentSpec(artifact="nobody", shards=1)
        wanted = deployments_pb2.Deployment(spec=spec)
        await stub.CreateDeployment(
            deployments_pb2.CreateDeploymentRequest(deployment_id="d", deployment=wanted)
        )

    async def reward(channel: grpc.aio.Channel) -> None:
        stub = rewards_pb2_grpc.RewardServiceStub(channel)
        source = rewards_pb2.RewardSource(name="a", model="nobody")
        item = rewards_pb2.RewardItem(prompt_text="a", response_text="b")
        await stub.ScoreRewards(rewards_pb2.ScoreRewardsRequest(sources=[source], items=[item]))

    asks: list[tuple[str, Any, str, Callable[[grpc.aio.Channel], Awaitable[None]]]] = [
        ("tokenizer", build_tokenizer, "tokenize", tokenizer),
        ("trainer", lambda c: build_trainer(c, launcher="processes"), "jobs", trainer),
        ("coordinator", build_coordinator, "runs", runs),
        ("coordinator", build_coordinator, "deployments", deployments),
        ("reward", build_reward, "rewards", reward),
    ]
    for stage, build, scope, ask in asks:
        replica = await run_stage(context, build(context))
        for scopes, names in (({scope}, False), ({scope, "artifacts"}, True)):
            channel = open_channel(
                replica.address,
                stage=stage,
                settings=context.settings,
                token=context.token,
                principal=Principal("t", "k", frozenset(scopes)),
            )
            with pytest.raises(PlinthError) as caught:
                await ask(channel)
            await channel.close()
            details = caught.value.message
            assert "no artifact is called 'nobody'" in details, (scope, details)
            assert (SECRET in details) is names, (scope, details)
        await replica.stop(5)
