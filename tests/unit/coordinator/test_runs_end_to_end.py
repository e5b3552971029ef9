"""Whole runs against scripted stages on real Redis, store and gRPC; leaders come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator_replica import PIPELINE, Coordinator, states, steps, until
from patience import PATIENCE_S
from plinth.coordinator.artifact_service import ArtifactServicer
from plinth.coordinator.deployment_service import DeploymentServicer
from plinth.models.ngram import ByteNgram
from plinth.shared.api.paging import Pages
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound
from plinth.shared.identity import SYSTEM, call_scope
from plinth.shared.store import ArtifactStore
from plinth.v1 import artifacts_pb2, deployments_pb2, runs_pb2
from scripted_stages import SCORED_BITS_PER_BYTE, TEXTS, World
from shown_runs import figures, made


async def test_a_run_from_corpus_to_served_model(world: World, coordinator: Coordinator) -> None:
    await coordinator.submit("r1")
    history = await asyncio.wait_for(coordinator.watch("r1"), PATIENCE_S)
    run = history[-1]
    assert run.status.state == runs_pb2.RUN_STATE_SUCCEEDED, run.status.error
    assert states(run) == ["SUCCEEDED"] * 7
    revisions = [one.status.revision for one in history]
    assert revisions == sorted(set(revisions))
    assert any(
        step.detail.startswith("step 1/2 · loss 3.250")
        for one in history
        for step in one.status.steps
    )
    done = steps(run)
    assert made(done["pretrain"]) == made(done["release"]) == made(done["online"]) == "mini@1"
    assert all(step.input_digest.startswith("sha256:") for step in run.status.steps)
    # The figures are what they must be: each byte after the start id is judged once.
    exam = figures(done["exam"])
    assert exam["bits_per_byte"] == pytest.approx(SCORED_BITS_PER_BYTE)
    held, train = TEXTS[:4], TEXTS[4:]
    ngram = ByteNgram(5).fit(t.encode() for t in train).bits_per_byte(t.encode() for t in held)
    assert exam["ngram_bits_per_byte"] == pytest.approx(ngram)
    assert exam["below_ngram"] == pytest.approx(1 - SCORED_BITS_PER_BYTE / ngram)
    assert world.shard.scored_ids == exam["held_out_bytes"] == sum(map(len, held))
    assert [a["answer"] for a in exam["answers"]] == ["olle", "cba"]
    assert exam["tokens_per_second"] > 0
    # The world is as the run says, and the candidate's own deployment is gone.
    assert await asyncio.to_thread(world.store.aliases, "mini") == {"prod": 1}
    assert [d.name for d in await asyncio.to_thread(world.deployments.list)] == ["mini"]
    assert any(name.startswith("candidate-") for name in world.served)
    report = await asyncio.to_thread(world.store.get, made(done["exam"]))
    assert report.parents == ("mini@1", "q-corpus@1")


async def test_a_second_run_reuses_what_is_done(world: World, coordinator: Coordinator) -> None:
    await coordinator.submit("r1")
    await coordinator.end("r1")
    jobs = len(world.trainer.jobs)
    await coordinator.submit("r2")
    again = await coordinator.end("r2")
    assert states(again) == ["REUSED"] * 7
    assert len(world.trainer.jobs) == jobs
    assert world.tokenizer.trained == 1
    assert figures(steps(again)["exam"])["answers"]
    # Another vocabulary: what stands on it is made again, what doesn't is not.
    await coordinator.submit("r3", steps__vocabulary__vocab_size="400")
    third = await coordinator.end("r3")
    assert states(third) == ["REUSED", *["SUCCEEDED"] * 6]
    assert made(steps(third)["pretrain"]) == "mini@2"
    assert await asyncio.to_thread(world.store.aliases, "mini") == {"prod": 2}


async def test_a_folder_that_changes_is_read_again(
    world: World, coordinator: Coordinator, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    text = f"{{name: d, steps: {{corpus: {{kind: data, corpus_dir: {folder}}}}}}}"
    for run_id, wanted in (("d1", "SUCCEEDED"), ("d2", "REUSED")):
        await coordinator.submit(run_id, text)
        assert states(await coordinator.end(run_id)) == [wanted]
    (folder / "a.txt").write_text("other")
    await coordinator.submit("d3", text)
    assert states(await coordinator.end("d3")) == ["SUCCEEDED"]
    for run_id in ("e1", "e2"):  # a folder that only the trainer sees is never reused
        await coordinator.submit(run_id, text.replace("texts", "elsewhere"))
        assert states(await coordinator.end(run_id)) == ["SUCCEEDED"]


async def test_a_failed_job_fails_the_run(world: World, coordinator: Coordinator) -> None:
    world.trainer.failures["mini"] = "loss is not a number at step 7"
    await coordinator.submit("r1")
    run = await coordinator.end("r1")
    assert run.status.state == runs_pb2.RUN_STATE_FAILED
    assert run.status.error == "pretrain: loss is not a number at step 7"
    assert states(run) == [*["SUCCEEDED"] * 3, "FAILED", *["CANCELLED"] * 3]


async def test_a_requirement_that_is_not_met(world: World, coordinator: Coordinator) -> None:
    require = "{bits_per_byte_at_most: 1.0, bits_per_byte_below_ngram: -9}"
    await coordinator.submit("r1", steps__exam__require=require)
    run = await coordinator.end("r1")
    assert run.status.state == runs_pb2.RUN_STATE_FAILED
    assert "exam: 1.443 bits per byte held out, at most 1.000 is required" in run.status.error
    assert await asyncio.to_thread(world.deployments.list) == []
    assert await asyncio.to_thread(world.store.aliases, "mini") == {}
    await coordinator.submit("r2", steps__exam__require="{bits_per_byte_below_ngram: 0.9}")
    assert (
        "above the 5-gram's 0.709, 90.0% below it is required"
        in (await coordinator.end("r2")).status.error
    )


def job_of(run: runs_pb2.Run) -> str:
    return steps(run)["pretrain"].job.removeprefix("jobs/")


async def test_pause_resume_cancel(world: World, coordinator: Coordinator) -> None:
    world.trainer.gates["q-corpus"] = asyncio.Event()
    await coordinator.submit("r1")
    await coordinator.reached("r1", "corpus", runs_pb2.STEP_STATE_RUNNING)
    assert (await coordinator.pause("r1")).status.state == runs_pb2.RUN_STATE_PAUSED
    world.trainer.gates["q-corpus"].set()
    run = await coordinator.reached(
        "r1", "corpus", runs_pb2.STEP_STATE_SUCCEEDED
    )  # the running one goes on
    assert run.status.state == runs_pb2.RUN_STATE_PAUSED
    assert states(run) == ["SUCCEEDED", *["PENDING"] * 6]
    world.trainer.gates["mini"] = asyncio.Event()
    resumed = await coordinator.resume("r1")
    assert resumed.status.state == runs_pb2.RUN_STATE_RUNNING
    run = await coordinator.reached("r1", "pretrain", runs_pb2.STEP_STATE_RUNNING)
    await until(lambda: job_of(run) in world.trainer.jobs)
    cancelled = await coordinator.cancel("r1")
    assert cancelled.status.state == runs_pb2.RUN_STATE_CANCELLED
    assert states(cancelled) == [*["SUCCEEDED"] * 3, *["CANCELLED"] * 4]
    assert world.trainer.cancelled == [job_of(run)]
    with pytest.raises(FailedPrecondition):
        await coordinator.resume("r1")


async def test_a_cancelled_exam_leaves_no_deployment(
    world: World, coordinator: Coordinator
) -> None:
    await world.take_down("inference")  # no shard will ever be ready
    await coordinator.submit("r1")
    await coordinator.reached("r1", "exam", runs_pb2.STEP_STATE_RUNNING)
    await until(lambda: asyncio.to_thread(world.deployments.list))
    await coordinator.cancel("r1")
    assert (await coordinator.end("r1")).status.state == runs_pb2.RUN_STATE_CANCELLED
    assert await asyncio.to_thread(world.deployments.list) == []


async def test_a_shard_that_never_comes_fails_the_step(
    world: World, coordinator: Coordinator
) -> None:
    await world.take_down("inference")
    await coordinator.submit("r1", steps__exam__ready_within_s="0.2")
    run = await coordinator.end("r1")
    assert "0 of 1 shards" in run.status.error
    assert await asyncio.to_thread(world.deployments.list) == []


async def test_stages_that_are_away_are_waited_for(world: World, coordinator: Coordinator) -> None:
    await world.take_down("trainer")
    await coordinator.submit("r1")

    async def waits() -> bool:
        run = await coordinator.get("r1")
        return steps(run)["corpus"].detail.startswith("waits: no trainer")

    await until(waits)
    await world.bring_up("trainer")
    world.trainer.gates["mini"] = asyncio.Event()
    await coordinator.reached("r1", "pretrain", runs_pb2.STEP_STATE_RUNNING)
    await world.take_down("trainer")  # in the middle of a job's stream
    world.trainer.gates["mini"].set()
    await world.bring_up("trainer")
    assert (await coordinator.end("r1")).status.state == runs_pb2.RUN_STATE_SUCCEEDED
    assert set(world.trainer.completed.values()) == {1}


async def test_another_leader_takes_a_run_over(world: World) -> None:
    first, second = Coordinator(world, "one"), Coordinator(world, "two")
    await first.start()
    await first.leads()
    await second.start()
    world.trainer.gates["mini"] = asyncio.Event()
    await second.submit("r1")  # any replica takes it; the leader runs it
    run = await first.reached("r1", "pretrain", runs_pb2.STEP_STATE_RUNNING)
    await first.stop()
    world.trainer.gates["mini"].set()
    done = await second.end("r1")
    assert done.status.state == runs_pb2.RUN_STATE_SUCCEEDED
    assert job_of(done) == job_of(run)
    assert set(world.trainer.completed.values()) == {1}
    await second.stop()


async def test_artifacts_of_the_store_are_pinned_at_submission(
    world: World, coordinator: Coordinator, tmp_path: Path
) -> None:
    await coordinator.submit("r1")
    await coordinator.end("r1")
    serve = "{name: s, steps: {online: {kind: serve, model: 'mini:prod', name: other}}}"
    run = await coordinator.submit("r2", serve)
    assert "model: mini@1" in run.spec.pipeline_yaml
    assert (await coordinator.end("r2")).status.state == runs_pb2.RUN_STATE_SUCCEEDED
    with pytest.raises(NotFound):
        await coordinator.submit("r3", serve.replace("mini:prod", "nothing"))
    with pytest.raises(InvalidArgument, match="is a corpus"):
        await coordinator.submit("r3", serve.replace("mini:prod", "q-corpus"))
    with pytest.raises(InvalidArgument, match="run_id"):
        await coordinator.submit("a/b", serve)


LORA = """
name: s
steps:
  tuned:
    kind: train
    objective: sft
    dataset: rows
    init_from: base
    lora: {rank: 4, targets: [q_proj]}
    steps: 1
"""


async def test_a_base_that_lora_can_not_go_on_is_refused_at_submission(
    world: World, coordinator: Coordinator, tmp_path: Path
) -> None:
    """An adapter, which is no whole model; and targets that the base on the store has not."""
    made = tmp_path / "files"
    made.mkdir()
    (made / "file").write_text("x")
    config = {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": False}
    store = world.store
    store.publish("base", "model", made, config=config)
    store.publish("rows", "dataset", made)
    store.publish("tuned", "model", made, parents=[store.publish("t-adapter", "adapter", made).ref])
    with pytest.raises(InvalidArgument, match="takes a model; t-adapter@1 is an adapter"):
        await coordinator.submit("r1", LORA.replace("init_from: base", "init_from: t-adapter"))
    with pytest.raises(InvalidArgument, match=r"'qkv' is no linear map .* q_proj") as caught:
        await coordinator.submit("r1", LORA.replace("[q_proj]", "[q_proj, qkv]"))
    assert caught.value.field == "steps.tuned.lora.targets"
    assert (await coordinator.submit("r1", LORA)).name == "runs/r1"


async def test_deployments_and_artifacts_over_grpc(world: World, coordinator: Coordinator) -> None:
    await coordinator.submit("r1")
    await coordinator.end("r1")
    front, pages = coordinator.front, Pages("a secret")
    deployments = DeploymentServicer(front._tools, pages)
    artifacts = ArtifactServicer(front._tools.store, front._uploads, pages, front._uses.of)
    spec = deployments_pb2.DeploymentSpec(artifact="mini:prod", shards=1)
    create = deployments_pb2.CreateDeploymentRequest(
        deployment_id="x", deployment=deployments_pb2.Deployment(spec=spec)
    )
    served = (await deployments.CreateDeployment(create, None)).deployment
    assert (served.name, served.spec.artifact) == ("deployments/x", "mini@1")

    async def ready() -> bool:
        listed = await deployments.ListDeployments(deployments_pb2.ListDeploymentsRequest(), None)
        there = {d.name: d.status.ready_shards for d in listed.deployments}
        return there == {"deployments/mini": 1, "deployments/x": 1}

    await until(ready)
    with call_scope(principal=SYSTEM):
        await deployments.DeleteDeployment(
            deployments_pb2.DeleteDeploymentRequest(name="deployments/x"), None
        )
    got = await artifacts.GetArtifact(artifacts_pb2.GetArtifactRequest(name="artifacts/mini"), None)
    assert list(got.artifact.aliases) == ["prod"]
    listed = await artifacts.ListArtifacts(
        artifacts_pb2.ListArtifactsRequest(filter="kind = CORPUS"), None
    )
    assert [one.name for one in listed.artifacts] == ["artifacts/q-corpus@1"]
    runs = (await coordinator.rpc.ListRuns(runs_pb2.ListRunsRequest(), None)).runs
    assert [(run.name, run.spec.pipeline_yaml) for run in runs] == [("runs/r1", "")]


async def test_a_renamed_pipeline_does_nothing_again(
    world: World, coordinator: Coordinator
) -> None:
    await coordinator.submit("r1")
    assert (await coordinator.end("r1")).status.state == runs_pb2.RUN_STATE_SUCCEEDED
    jobs, trained = len(world.trainer.jobs), world.tokenizer.trained
    renamed = PIPELINE.replace("name: q", "name: renamed").replace("output: mini", "output: maxi")
    await coordinator.submit("r2", renamed)
    run = await coordinator.end("r2")
    assert states(run) == [*["REUSED"] * 5, "SUCCEEDED", "SUCCEEDED"], run.status.error
    assert (len(world.trainer.jobs), world.tokenizer.trained) == (jobs, trained)
    # What it made is called as this pipeline says, and there is no second copy of it.
    done = steps(run)
    assert made(done["corpus"]) == "renamed-corpus@1"
    assert made(done["pretrain"]) == made(done["release"]) == "maxi@1"
    store = ArtifactStore(world.settings.store())
    now = await asyncio.to_thread(store.get, "maxi@1")
    was = await asyncio.to_thread(store.get, "mini@1")
    assert (now.digest, now.path, now.parents) == (was.digest, was.path, was.parents)
    await asyncio.to_thread(store.verify, now)
    assert await asyncio.to_thread(store.aliases, "maxi") == {"prod": 1}
    await coordinator.submit("r3", renamed)  # and once more it is the same version
    assert made(steps(await coordinator.end("r3"))["pretrain"]) == "maxi@1"
    # A run that took the step from another name can be forked.
    await coordinator.fork(runs_pb2.ForkRunRequest(run_id="f", name="runs/r2", from_step="release"))
    assert (await coordinator.end("f")).status.state == runs_pb2.RUN_STATE_SUCCEEDED
