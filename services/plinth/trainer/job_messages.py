"""Jobs as JobService tells of them, made of the records that Redis keeps, and the other way round
for a new one; and what a filter of them may ask."""

from __future__ import annotations

import json
from datetime import datetime

from plinth.internal.v1 import job_records_pb2 as rec
from plinth.shared.api.enums import word, words
from plinth.shared.api.filters import Field, Filters
from plinth.shared.api.resource_names import Pattern
from plinth.shared.api.structs import struct
from plinth.shared.api.times import instant, timestamp
from plinth.shared.api.words import given
from plinth.shared.store import ArtifactRecord
from plinth.trainer.loop.job_folder import JobProgress
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import owner_pb2

JOBS = Pattern("jobs/{job}", r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def job_message(record: rec.JobRecord) -> pb.Job:
    """The public message."""
    made = record.artifact
    return pb.Job(
        name=JOBS.name(record.job_id),
        spec=record.spec,
        status=pb.JobStatus(
            state=record.state,
            progress=record.progress if record.HasField("progress") else None,
            error=record.error,
            artifact=f"artifacts/{made.name}@{made.version}" if made.name else "",
            metrics=struct(json.loads(made.metrics_json)) if made.metrics_json else None,
            attempts=record.attempts,
            start_time=timestamp(record.started_unix_ms),
            end_time=timestamp(record.finished_unix_ms),
        ),
        owner=record.owner if record.HasField("owner") else None,
        create_time=timestamp(record.submitted_unix_ms),
        update_time=timestamp(record.changed_unix_ms or record.submitted_unix_ms),
    )


def new_record(
    job_id: str, spec: pb.JobSpec, owner: owner_pb2.Owner, now_unix_ms: int
) -> rec.JobRecord:
    """The record of a job that nobody has begun."""
    return rec.JobRecord(
        job_id=job_id,
        spec=spec,
        state=pb.JOB_STATE_QUEUED,
        submitted_unix_ms=now_unix_ms,
        owner=owner,
    )


def progress_message(progress: JobProgress) -> pb.JobProgress:
    """What the work said of itself."""
    values = dict(vars(progress))
    values["remaining_duration"] = values.pop("eta_seconds")
    return given(pb.JobProgress, values)


def published_artifact(record: ArtifactRecord) -> rec.PublishedArtifact:
    """What is kept of the artifact that a job made."""
    return rec.PublishedArtifact(
        name=record.name,
        version=record.version,
        kind=record.kind,
        digest=record.digest,
        metrics_json=json.dumps(record.manifest.get("metrics") or {}),
    )


_STATES = tuple(state.upper() for state in words(pb.JobState))

JOB_FILTERS = Filters(
    {
        "name": Field(lambda job: job.name, str),
        "state": Field(lambda job: word(pb.JobState, job.status.state).upper(), str, _STATES),
        "artifact": Field(lambda job: job.status.artifact, str),
        "owner.tenant": Field(lambda job: job.owner.tenant, str),
        "owner.key_id": Field(lambda job: job.owner.key_id, str),
        "create_time": Field(lambda job: instant(job.create_time), datetime),
        "update_time": Field(lambda job: instant(job.update_time), datetime),
        "end_time": Field(lambda job: instant(job.status.end_time), datetime),
    }
)
