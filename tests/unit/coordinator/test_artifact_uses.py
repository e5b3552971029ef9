"""What keeps an artifact from being deleted, beside aliases and other artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plinth.coordinator.artifact_uses import ArtifactUses
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared.records import DeploymentRecords
from plinth.shared.store import ArtifactStore
from plinth.v1 import jobs_pb2

PIPELINE = "{name: p, steps: {one: {kind: serve, model: 'm:prod', name: chat}}}"


class Trainer:
    """Has these jobs; a page holds one."""

    def __init__(self, jobs: dict[str, list[jobs_pb2.Job]]) -> None:
        self._jobs = jobs

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest) -> jobs_pb2.ListJobsResponse:
        jobs = self._jobs.get(request.filter.rpartition(" ")[2], [])
        at = int(request.page_token or 0)
        more = str(at + 1) if at + 1 < len(jobs) else ""
        return jobs_pb2.ListJobsResponse(jobs=jobs[at : at + 1], next_page_token=more)


class Runs:
    def __init__(self, **runs: rec.RunRecord) -> None:
        self._runs = runs

    async def active(self) -> list[str]:
        return [*self._runs, "ended and deleted since"]

    async def find(self, run_id: str) -> rec.RunRecord | None:
        return self._runs.get(run_id)


@pytest.fixture
def made(store: ArtifactStore, tmp_path: Path) -> Iterator[ArtifactStore]:
    """m@1 to m@4, of which m:prod is m@2."""
    (tmp_path / "a").write_text("1")
    for digest in "abcd":
        store.publish("m", "model", tmp_path / "a", input_digest=digest)
    store.set_alias("m", "prod", 2)
    return store


async def used(store: ArtifactStore, runs: Any = None, **jobs: list[jobs_pb2.Job]) -> list[Any]:
    """What points to m@1, m@2, m@3 and m@4."""

    async def trainer(_principal: Any = None) -> Trainer:
        return Trainer(jobs)

    clients: Any = SimpleNamespace(trainer=trainer)
    uses = ArtifactUses(store, DeploymentRecords(store), runs or Runs(), clients)
    return [list(await uses.of(store.get(f"m@{n}"))) for n in range(1, 5)]


def job(name: str, **train: Any) -> jobs_pb2.Job:
    spec = jobs_pb2.JobSpec(output_name="out", train=jobs_pb2.TrainSpec(**train))
    return jobs_pb2.Job(name=f"jobs/{name}", spec=spec)


async def test_nothing(made: ArtifactStore) -> None:
    assert await used(made) == [[], [], [], []]


async def test_deployments_with_their_drafts_and_what_canaries_are_measured_against(
    made: ArtifactStore,
) -> None:
    records = DeploymentRecords(made)
    records.put(internal.DeploymentRecord(name="chat", artifact="m@1", speculation="draft:m:prod"))
    records.put(
        internal.DeploymentRecord(
            name="chat.canary", artifact="m@4", canary_of="chat", stable="m@3", traffic_share=0.1
        )
    )
    assert await used(made) == [
        ["deployment chat"],
        ["deployment chat"],
        ["deployment chat.canary"],
        ["deployment chat.canary"],
    ]


async def test_runs_by_what_they_name_and_what_they_made(made: ArtifactStore) -> None:
    going = rec.RunRecord(run_id="going", pipeline_yaml=PIPELINE)
    going.steps.add(name="one", output="m@3")
    broken = rec.RunRecord(run_id="broken", pipeline_yaml="{")
    runs = Runs(going=going, broken=broken)
    assert await used(made, runs) == [[], ["run going"], ["run going"], []]


async def test_jobs_on_every_page(made: ArtifactStore) -> None:
    judge = jobs_pb2.TrainSpec().rewards.add(name="judge", model="m@1")
    found = await used(
        made,
        QUEUED=[job("a", init_from="m:prod"), job("b", init_from="m"), job("c", dataset="other@1")],
        RUNNING=[job("d", rewards=[judge])],
    )
    assert found == [["job d"], ["job a"], [], ["job b"]]
