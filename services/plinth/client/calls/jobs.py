"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import jobs_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_SUBMIT_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "SubmitJob")
_GET_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "GetJob")
_LIST_JOBS = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "ListJobs")
_CANCEL_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "CancelJob")
_WATCH_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "WatchJob")


class JobService:
    """JobService."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def submit_job(
        self,
        job_id: str = "",
        *,
        spec: jobs_pb2.JobSpec | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """Queues a job. Idempotent by job_id: the same id and specification answer with the job
        that it made first, another specification under that id is ALREADY_EXISTS.

        job_id: Made by the caller for idempotency; empty: the trainer makes one.
        """
        response: jobs_pb2.SubmitJobResponse = self._calls.unary(
            _SUBMIT_JOB,
            request(jobs_pb2.SubmitJobRequest, job_id=job_id, spec=spec),
            timeout,
            metadata,
        )
        return response.job

    def get_job(
        self,
        job_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        response: jobs_pb2.GetJobResponse = self._calls.unary(
            _GET_JOB, request(jobs_pb2.GetJobRequest, job_id=job_id), timeout, metadata
        )
        return response.job

    def list_jobs(
        self,
        limit: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.ListJobsResponse:
        """limit: 1 to 200; default 50. Newest first."""
        response: jobs_pb2.ListJobsResponse = self._calls.unary(
            _LIST_JOBS, request(jobs_pb2.ListJobsRequest, limit=limit), timeout, metadata
        )
        return response

    def cancel_job(
        self,
        job_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """Idempotent. A running job stops at its next step and keeps its last checkpoint."""
        response: jobs_pb2.CancelJobResponse = self._calls.unary(
            _CANCEL_JOB, request(jobs_pb2.CancelJobRequest, job_id=job_id), timeout, metadata
        )
        return response.job

    def watch_job(
        self,
        job_id: str = "",
        *,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[jobs_pb2.WatchJobResponse, None, None]:
        """The job as it is now, then after each change, until it ends. Each state is told, in
        order; of progress in between the newest.

        resume_token: Of the last response of a watch that broke: goes on after it.
        """
        return self._calls.stream(
            _WATCH_JOB,
            request(jobs_pb2.WatchJobRequest, job_id=job_id, resume_token=resume_token),
            timeout,
            metadata,
        )


class AsyncJobService:
    """JobService."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def submit_job(
        self,
        job_id: str = "",
        *,
        spec: jobs_pb2.JobSpec | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """Queues a job. Idempotent by job_id: the same id and specification answer with the job
        that it made first, another specification under that id is ALREADY_EXISTS.

        job_id: Made by the caller for idempotency; empty: the trainer makes one.
        """
        response: jobs_pb2.SubmitJobResponse = await self._calls.unary(
            _SUBMIT_JOB,
            request(jobs_pb2.SubmitJobRequest, job_id=job_id, spec=spec),
            timeout,
            metadata,
        )
        return response.job

    async def get_job(
        self,
        job_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        response: jobs_pb2.GetJobResponse = await self._calls.unary(
            _GET_JOB, request(jobs_pb2.GetJobRequest, job_id=job_id), timeout, metadata
        )
        return response.job

    async def list_jobs(
        self,
        limit: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.ListJobsResponse:
        """limit: 1 to 200; default 50. Newest first."""
        response: jobs_pb2.ListJobsResponse = await self._calls.unary(
            _LIST_JOBS, request(jobs_pb2.ListJobsRequest, limit=limit), timeout, metadata
        )
        return response

    async def cancel_job(
        self,
        job_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """Idempotent. A running job stops at its next step and keeps its last checkpoint."""
        response: jobs_pb2.CancelJobResponse = await self._calls.unary(
            _CANCEL_JOB, request(jobs_pb2.CancelJobRequest, job_id=job_id), timeout, metadata
        )
        return response.job

    def watch_job(
        self,
        job_id: str = "",
        *,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[jobs_pb2.WatchJobResponse, None]:
        """The job as it is now, then after each change, until it ends. Each state is told, in
        order; of progress in between the newest.

        resume_token: Of the last response of a watch that broke: goes on after it.
        """
        return self._calls.stream(
            _WATCH_JOB,
            request(jobs_pb2.WatchJobRequest, job_id=job_id, resume_token=resume_token),
            timeout,
            metadata,
        )
