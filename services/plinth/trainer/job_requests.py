"""What requests about jobs may say, and how they are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from plinth.shared import redis_keys
from plinth.shared.artifact_rights import check_next_version
from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlinthError,
)
from plinth.shared.identity import Principal
from plinth.shared.kinds import ADAPTER_SUFFIX
from plinth.shared.store import ArtifactStore
from plinth.v1 import jobs_pb2 as pb

MAX_JOB_ID = 100
# Fields that refer to artifacts, by kind of work.
_REFERENCES: Mapping[str, Sequence[str]] = {
    "train": ("dataset", "init_from", "reward"),
    "prepare": ("tokenizer", "corpus", "samples", "prompts"),
    "compare": ("dataset", "models", "reward"),
    "model_import": ("files", "base"),
}
MAX_SPEC_BYTES = 1 << 20  # as protobuf; what is larger goes by the reference of an artifact


def checked_id(job_id: str) -> str:
    """A new job's id; InvalidArgument says what one looks like."""
    if len(job_id) > MAX_JOB_ID or "/" in job_id or "@" in job_id:
        raise InvalidArgument(
            f"job_id: at most {MAX_JOB_ID} characters, without / and @", field="job_id"
        )
    return redis_keys.check_part(job_id, "job_id")


def checked_job(job: pb.Job) -> pb.JobSpec:
    """What is asked for. InvalidArgument where the platform's fields are set."""
    for field, _ in job.ListFields():
        if field.name != "spec":
            raise InvalidArgument(
                f"job.{field.name} is set by the platform; give job.spec alone, and job_id",
                field=f"job.{field.name}",
            )
    if (size := job.spec.ByteSize()) > MAX_SPEC_BYTES:
        raise InvalidArgument(
            f"job.spec has {size} bytes; at most {MAX_SPEC_BYTES}", field="job.spec"
        )
    return job.spec


def check_named(spec: pb.JobSpec, store: ArtifactStore) -> None:
    """NotFound, InvalidArgument for the first reference to no artifact that there is. Blocks."""
    for kind, fields in _REFERENCES.items():
        work = getattr(spec, kind)
        for name in fields:
            said = getattr(work, name)
            for reference in filter(None, [said] if isinstance(said, str) else said):
                try:
                    store.get(reference)
                except (NotFound, InvalidArgument) as wrong:
                    wrong.field = f"spec.{kind}.{name}"
                    raise


def check_output(spec: pb.JobSpec, store: ArtifactStore, principal: Principal) -> None:
    """PermissionDenied (OTHER_TENANT) if what the job publishes would be the next version of
    another tenant's artifact. Blocks."""
    names = [spec.output_name]
    if spec.train.HasField("lora"):
        names.append(spec.output_name + ADAPTER_SUFFIX)
    for name in names:
        try:
            check_next_version(store, name, principal)
        except PermissionDenied as refused:
            refused.field = "spec.output_name"
            raise


@contextmanager
def within_job() -> Iterator[None]:
    """Fields of a specification ("spec.train.steps") as those of the request that it came in."""
    try:
        yield
    except PlinthError as wrong:
        if wrong.field.startswith("spec"):
            wrong.field = f"job.{wrong.field}"
        raise


def not_ended(job_id: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"job {job_id} has not ended; cancel it, then delete it", reason="JOB_NOT_ENDED"
    )
