"""What a pipeline would change of another tenant's is refused when it is submitted, and again when
its step does it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator_replica import PIPELINE, Coordinator
from plinth.coordinator.runs import principal_of
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.shared.api.owners import owner_of
from plinth.shared.errors import PermissionDenied
from plinth.shared.identity import Principal, call_scope
from plinth.v1 import runs_pb2 as pb
from scripted_stages import World

ANNA = Principal("anna", "key-a", frozenset({"runs"}))
BEN = Principal("ben", "key-b", frozenset({"runs"}))
ADMIN = Principal("ops", "key-o", frozenset({"admin"}))
LORA = """
name: p
steps:
  tuned:
    {kind: train, objective: clm, dataset: d, init_from: m, steps: 2, output: lm, lora: {rank: 2}}
"""


async def publish(world: World, tmp_path: Path, name: str, kind: str = "model") -> None:
    """The next version of an artifact, Anna's."""
    (tmp_path / "file").write_text(f"{name} {kind} {len(world.store.list())}")
    store = world.store.owned_by(owner_of(ANNA))
    await asyncio.to_thread(store.publish, name, kind, tmp_path / "file")


async def submit(coordinator: Coordinator, run_id: str, text: str, principal: Principal) -> pb.Run:
    request = pb.CreateRunRequest(run_id=run_id, run=pb.Run(spec=pb.RunSpec(pipeline_yaml=text)))
    with call_scope(principal=principal):
        run: pb.Run = (await coordinator.rpc.CreateRun(request, None)).run
    return run


def one(step: str) -> str:
    return f"{{name: p, steps: {{s: {step}}}}}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (one("{kind: data, builtin: stdlib, output: mine}"), "steps.s: artifact mine"),
        (one("{kind: preferences, collection: c, output: mine}"), "steps.s: artifact mine"),
        (one("{kind: serve, model: other, name: mine}"), "steps.s: deployment 'mine'"),
        (one("{kind: canary, model: other, name: mine}"), "steps.s: deployment 'mine'"),
        (one("{kind: publish, model: mine}"), "steps.s: mine@"),
        (one("{kind: canary, model: mine, name: free}"), "steps.s: mine@"),
        (LORA, "steps.tuned: artifact lm-adapter"),
    ],
)
async def test_another_tenants_is_refused(
    world: World, coordinator: Coordinator, tmp_path: Path, text: str, says: str
) -> None:
    await publish(world, tmp_path, "mine")
    await publish(world, tmp_path, "lm-adapter", "adapter")
    await publish(world, tmp_path, "d", "dataset")
    for name in ("other", "m"):
        (tmp_path / name).write_text(name)
        await asyncio.to_thread(world.store.publish, name, "model", tmp_path / name)
    deployments = world.deployments.owned_by(owner_of(ANNA))
    wanted = internal.DeploymentRecord(name="mine", artifact="mine")
    await asyncio.to_thread(deployments.put, wanted)
    with pytest.raises(PermissionDenied) as caught:
        await submit(coordinator, "r", text, BEN)
    assert caught.value.reason == "OTHER_TENANT"
    assert caught.value.message.startswith(says)
    for run_id, principal in (("a", ANNA), ("o", ADMIN)):
        assert (await submit(coordinator, run_id, text, principal)).name == f"runs/{run_id}"


async def test_what_was_taken_meanwhile_is_not_changed(
    world: World, coordinator: Coordinator, tmp_path: Path
) -> None:
    gate = world.trainer.gates["mini"] = asyncio.Event()
    await submit(coordinator, "r", PIPELINE, BEN)
    await asyncio.wait_for(world.trainer.training.wait(), 60)
    await publish(world, tmp_path, "anna-lm")
    deployments = world.deployments.owned_by(owner_of(ANNA))
    wanted = internal.DeploymentRecord(name="mini", artifact="anna-lm")
    await asyncio.to_thread(deployments.put, wanted)
    gate.set()
    run = await coordinator.end("r")
    assert run.status.state == pb.RUN_STATE_FAILED
    assert "online: deployment 'mini' was made by another tenant" in run.status.error
    (still,) = await asyncio.to_thread(world.deployments.list)
    assert still.artifact == "anna-lm@1"


async def test_a_fork_changes_no_more_than_a_run(
    world: World, coordinator: Coordinator, tmp_path: Path
) -> None:
    await submit(coordinator, "r", one("{kind: data, builtin: stdlib, output: mine}"), ANNA)
    await coordinator.end("r")
    await publish(world, tmp_path, "mine", "corpus")
    request = pb.ForkRunRequest(name="runs/r", run_id="f", from_step="s")
    with call_scope(principal=BEN), pytest.raises(PermissionDenied, match="artifact mine"):
        await coordinator.rpc.ForkRun(request, None)


async def test_a_run_of_an_operator_stays_one(coordinator: Coordinator) -> None:
    text = one("{kind: data, builtin: stdlib}")
    for run_id, principal, admin in (("a", ANNA, False), ("o", ADMIN, True)):
        await submit(coordinator, run_id, text, principal)
        record = await coordinator.front._records.get(run_id)
        assert ("admin" in principal_of(record).scopes) == admin
