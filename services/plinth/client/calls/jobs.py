"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import jobs_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_CREATE_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "CreateJob")
_GET_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "GetJob")
_LIST_JOBS = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "ListJobs")
_DELETE_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "DeleteJob")
_CANCEL_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "CancelJob")
_WATCH_JOB = Method.of(jobs_pb2.DESCRIPTOR, "JobService", "WatchJob")


class JobService:
    """Jobs. Keys of every tenant with the scope may read a job; only those of the tenant that
    created it, and operators (scope "admin"), may change it: PERMISSION_DENIED, reason
    OTHER_TENANT, else. The jobs of a run's steps are the run's owner's. A job that does not
    exist is NOT_FOUND, reason JOB_NOT_FOUND."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def create_job(
        self,
        job_id: str = "",
        *,
        job: jobs_pb2.Job | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """Queues a job. Idempotent by job_id: the same id and specification give the job that they
        created first, another specification under that id is ALREADY_EXISTS (JOB_EXISTS).
        INVALID_ARGUMENT names the field that is wrong, as "job.spec.train.batch_size";
        NOT_FOUND an artifact that does not exist; PERMISSION_DENIED (OTHER_TENANT) is for an
        output_name whose latest version is another tenant's; RESOURCE_EXHAUSTED (QUEUE_FULL)
        says when to try again.

        job_id: Id of the new job, chosen by the client: 1 to 100 characters of A-Z a-z 0-9 . _
          -.
        job: `spec` says what is to be done; all else is the platform's and has to be empty.
        """
        response: jobs_pb2.CreateJobResponse = self._calls.unary(
            _CREATE_JOB,
            request(jobs_pb2.CreateJobRequest, job_id=job_id, job=job),
            timeout,
            metadata,
        )
        return response.job

    def get_job(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """The job as it is now.

        name: "jobs/{job}".
        """
        response: jobs_pb2.GetJobResponse = self._calls.unary(
            _GET_JOB, request(jobs_pb2.GetJobRequest, name=name), timeout, metadata
        )
        return response.job

    def list_jobs(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[jobs_pb2.Job, jobs_pb2.ListJobsResponse]:
        """Jobs of all tenants, newest first.

        page_size: How many at most; 0: 50, more than 1000: 1000. A page may have fewer although
          more follow.
        filter: Which ones, of AIP-160: comparisons joined by AND. Fields: state, name,
          artifact, create_time, update_time, end_time, owner.tenant, owner.key_id. As `state =
          FAILED AND name = "jobs/nightly-*"`. Empty: all.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_JOBS, asked, timeout, metadata),
            request(jobs_pb2.ListJobsRequest, page_size=page_size, filter=filter),
            "jobs",
        )

    def delete_job(
        self,
        name: str = "",
        *,
        allow_missing: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Forgets a job that has ended. What it published stays. FAILED_PRECONDITION: it has not
        ended (JOB_NOT_ENDED: cancel it first), or a run that has not ended needs its result
        (JOB_IN_USE).

        name: "jobs/{job}".
        allow_missing: No error where there is no such job.
        """
        self._calls.unary(
            _DELETE_JOB,
            request(jobs_pb2.DeleteJobRequest, name=name, allow_missing=allow_missing),
            timeout,
            metadata,
        )

    def cancel_job(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """Cancels a job. One that runs stops at its next step; one that has ended stays as it is.

        name: "jobs/{job}".
        """
        response: jobs_pb2.CancelJobResponse = self._calls.unary(
            _CANCEL_JOB, request(jobs_pb2.CancelJobRequest, name=name), timeout, metadata
        )
        return response.job

    def watch_job(
        self,
        name: str = "",
        *,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[jobs_pb2.WatchJobResponse, None, None]:
        """The job as it is now, then after each change, until it ends. Each state is told, in
        order; of progress in between the newest. While nothing changes, a response without a
        job comes at least every 15 s.

        name: "jobs/{job}".
        resume_token: resume_token of the last response of a watch that broke: goes on behind
          it. Empty: begins with the job as it is. INVALID_ARGUMENT for one that WatchJob did
          not give.
        """
        return self._calls.stream(
            _WATCH_JOB,
            request(jobs_pb2.WatchJobRequest, name=name, resume_token=resume_token),
            timeout,
            metadata,
        )


class AsyncJobService:
    """Jobs. Keys of every tenant with the scope may read a job; only those of the tenant that
    created it, and operators (scope "admin"), may change it: PERMISSION_DENIED, reason
    OTHER_TENANT, else. The jobs of a run's steps are the run's owner's. A job that does not
    exist is NOT_FOUND, reason JOB_NOT_FOUND."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def create_job(
        self,
        job_id: str = "",
        *,
        job: jobs_pb2.Job | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """Queues a job. Idempotent by job_id: the same id and specification give the job that they
        created first, another specification under that id is ALREADY_EXISTS (JOB_EXISTS).
        INVALID_ARGUMENT names the field that is wrong, as "job.spec.train.batch_size";
        NOT_FOUND an artifact that does not exist; PERMISSION_DENIED (OTHER_TENANT) is for an
        output_name whose latest version is another tenant's; RESOURCE_EXHAUSTED (QUEUE_FULL)
        says when to try again.

        job_id: Id of the new job, chosen by the client: 1 to 100 characters of A-Z a-z 0-9 . _
          -.
        job: `spec` says what is to be done; all else is the platform's and has to be empty.
        """
        response: jobs_pb2.CreateJobResponse = await self._calls.unary(
            _CREATE_JOB,
            request(jobs_pb2.CreateJobRequest, job_id=job_id, job=job),
            timeout,
            metadata,
        )
        return response.job

    async def get_job(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """The job as it is now.

        name: "jobs/{job}".
        """
        response: jobs_pb2.GetJobResponse = await self._calls.unary(
            _GET_JOB, request(jobs_pb2.GetJobRequest, name=name), timeout, metadata
        )
        return response.job

    def list_jobs(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[jobs_pb2.Job, jobs_pb2.ListJobsResponse]:
        """Jobs of all tenants, newest first.

        page_size: How many at most; 0: 50, more than 1000: 1000. A page may have fewer although
          more follow.
        filter: Which ones, of AIP-160: comparisons joined by AND. Fields: state, name,
          artifact, create_time, update_time, end_time, owner.tenant, owner.key_id. As `state =
          FAILED AND name = "jobs/nightly-*"`. Empty: all.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_JOBS, asked, timeout, metadata),
            request(jobs_pb2.ListJobsRequest, page_size=page_size, filter=filter),
            "jobs",
        )

    async def delete_job(
        self,
        name: str = "",
        *,
        allow_missing: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Forgets a job that has ended. What it published stays. FAILED_PRECONDITION: it has not
        ended (JOB_NOT_ENDED: cancel it first), or a run that has not ended needs its result
        (JOB_IN_USE).

        name: "jobs/{job}".
        allow_missing: No error where there is no such job.
        """
        await self._calls.unary(
            _DELETE_JOB,
            request(jobs_pb2.DeleteJobRequest, name=name, allow_missing=allow_missing),
            timeout,
            metadata,
        )

    async def cancel_job(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> jobs_pb2.Job:
        """Cancels a job. One that runs stops at its next step; one that has ended stays as it is.

        name: "jobs/{job}".
        """
        response: jobs_pb2.CancelJobResponse = await self._calls.unary(
            _CANCEL_JOB, request(jobs_pb2.CancelJobRequest, name=name), timeout, metadata
        )
        return response.job

    def watch_job(
        self,
        name: str = "",
        *,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[jobs_pb2.WatchJobResponse, None]:
        """The job as it is now, then after each change, until it ends. Each state is told, in
        order; of progress in between the newest. While nothing changes, a response without a
        job comes at least every 15 s.

        name: "jobs/{job}".
        resume_token: resume_token of the last response of a watch that broke: goes on behind
          it. Empty: begins with the job as it is. INVALID_ARGUMENT for one that WatchJob did
          not give.
        """
        return self._calls.stream(
            _WATCH_JOB,
            request(jobs_pb2.WatchJobRequest, name=name, resume_token=resume_token),
            timeout,
            metadata,
        )
