"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import runs_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_CREATE_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "CreateRun")
_GET_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "GetRun")
_LIST_RUNS = Method.of(runs_pb2.DESCRIPTOR, "RunService", "ListRuns")
_DELETE_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "DeleteRun")
_CANCEL_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "CancelRun")
_PAUSE_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "PauseRun")
_RESUME_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "ResumeRun")
_FORK_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "ForkRun")
_WATCH_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "WatchRun")


class RunService:
    """Runs of pipelines. Keys of every tenant with the scope may read a run; only those of the
    tenant that created it, and operators (scope "admin"), may change it: PERMISSION_DENIED,
    reason OTHER_TENANT, else. A run that does not exist is NOT_FOUND, reason RUN_NOT_FOUND."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def create_run(
        self,
        run_id: str = "",
        *,
        run: runs_pb2.Run | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Starts a run of a pipeline. Idempotent by run_id: the same request again gives the run
        that it created, another request under that id is ALREADY_EXISTS (RUN_EXISTS).
        INVALID_ARGUMENT names the pipeline's setting that is wrong, as
        "steps.corpus.corpus_dir"; PERMISSION_DENIED (OTHER_TENANT) the step that would change
        what is another tenant's: an artifact's next version, an alias, a deployment.
        RESOURCE_EXHAUSTED while 128 runs have not ended.

        run_id: Id of the new run, chosen by the client: 1 to 40 characters of A-Z a-z 0-9 . _
          -.
        run: `spec` says what is to be done; all else is the platform's and has to be empty.
        """
        response: runs_pb2.CreateRunResponse = self._calls.unary(
            _CREATE_RUN,
            request(runs_pb2.CreateRunRequest, run_id=run_id, run=run),
            timeout,
            metadata,
        )
        return response.run

    def get_run(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """The run as it is now.

        name: "runs/{run}".
        """
        response: runs_pb2.GetRunResponse = self._calls.unary(
            _GET_RUN, request(runs_pb2.GetRunRequest, name=name), timeout, metadata
        )
        return response.run

    def list_runs(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[runs_pb2.Run, runs_pb2.ListRunsResponse]:
        """Runs of all tenants, newest first, without their pipelines (GetRun gives each).

        page_size: How many at most; 0: 50, more than 1000: 1000. A page may have fewer although
          more follow.
        filter: Which ones, of AIP-160: comparisons joined by AND. Fields: state, display_name,
          name, create_time, update_time, end_time, owner.tenant, owner.key_id. As `state =
          RUNNING AND create_time >= "2026-11-01T00:00:00Z"`. Empty: all.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_RUNS, asked, timeout, metadata),
            request(runs_pb2.ListRunsRequest, page_size=page_size, filter=filter),
            "runs",
        )

    def delete_run(
        self,
        name: str = "",
        *,
        allow_missing: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Forgets a run that has ended. What its steps published stays. FAILED_PRECONDITION
        (RUN_NOT_ENDED) while it has not ended: cancel it first.

        name: "runs/{run}".
        allow_missing: No error where there is no such run.
        """
        self._calls.unary(
            _DELETE_RUN,
            request(runs_pb2.DeleteRunRequest, name=name, allow_missing=allow_missing),
            timeout,
            metadata,
        )

    def cancel_run(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Cancels the running steps and ends the run. Of a run that has ended nothing changes. The
        answer comes once the run has ended, or after 3 s with the run as it is by then.

        name: "runs/{run}".
        """
        response: runs_pb2.CancelRunResponse = self._calls.unary(
            _CANCEL_RUN, request(runs_pb2.CancelRunRequest, name=name), timeout, metadata
        )
        return response.run

    def pause_run(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """No new step starts; running ones go on. FAILED_PRECONDITION when the run has ended
        (RUN_ENDED) or is being cancelled (RUN_CANCELLED). Answers as CancelRun does.

        name: "runs/{run}".
        """
        response: runs_pb2.PauseRunResponse = self._calls.unary(
            _PAUSE_RUN, request(runs_pb2.PauseRunRequest, name=name), timeout, metadata
        )
        return response.run

    def resume_run(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Goes on with a paused run. Errors and answer as of PauseRun.

        name: "runs/{run}".
        """
        response: runs_pb2.ResumeRunResponse = self._calls.unary(
            _RESUME_RUN, request(runs_pb2.ResumeRunRequest, name=name), timeout, metadata
        )
        return response.run

    def fork_run(
        self,
        name: str = "",
        *,
        run_id: str = "",
        from_step: str = "",
        overrides: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Starts a run that takes over what another one finished and does the rest with other
        settings. Idempotent by run_id, and refused, as CreateRun. FAILED_PRECONDITION when a
        step that is needed has not finished (STEP_UNFINISHED) or what it made is gone
        (ARTIFACT_GONE).

        name: The run to fork, "runs/{run}"; it may still be going on.
        run_id: Id of the new run; as in CreateRunRequest.
        from_step: The first step to be done anew; so is whatever needs it. The steps that it
          needs must have finished.
        overrides: As RunSpec.overrides; not for steps that are taken over.
        """
        response: runs_pb2.ForkRunResponse = self._calls.unary(
            _FORK_RUN,
            request(
                runs_pb2.ForkRunRequest,
                name=name,
                run_id=run_id,
                from_step=from_step,
                overrides=overrides,
            ),
            timeout,
            metadata,
        )
        return response.run

    def watch_run(
        self,
        name: str = "",
        *,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[runs_pb2.WatchRunResponse, None, None]:
        """The run as it is now, then after each change, until it ends. Each state of the run and
        of its steps is told, in order; of progress in between the newest. While nothing
        changes, a response without a run comes at least every 15 s.

        name: "runs/{run}".
        resume_token: resume_token of the last response of a watch that broke: goes on behind
          it. Empty: begins with the run as it is. INVALID_ARGUMENT for one that WatchRun did
          not give.
        """
        return self._calls.stream(
            _WATCH_RUN,
            request(runs_pb2.WatchRunRequest, name=name, resume_token=resume_token),
            timeout,
            metadata,
        )


class AsyncRunService:
    """Runs of pipelines. Keys of every tenant with the scope may read a run; only those of the
    tenant that created it, and operators (scope "admin"), may change it: PERMISSION_DENIED,
    reason OTHER_TENANT, else. A run that does not exist is NOT_FOUND, reason RUN_NOT_FOUND."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def create_run(
        self,
        run_id: str = "",
        *,
        run: runs_pb2.Run | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Starts a run of a pipeline. Idempotent by run_id: the same request again gives the run
        that it created, another request under that id is ALREADY_EXISTS (RUN_EXISTS).
        INVALID_ARGUMENT names the pipeline's setting that is wrong, as
        "steps.corpus.corpus_dir"; PERMISSION_DENIED (OTHER_TENANT) the step that would change
        what is another tenant's: an artifact's next version, an alias, a deployment.
        RESOURCE_EXHAUSTED while 128 runs have not ended.

        run_id: Id of the new run, chosen by the client: 1 to 40 characters of A-Z a-z 0-9 . _
          -.
        run: `spec` says what is to be done; all else is the platform's and has to be empty.
        """
        response: runs_pb2.CreateRunResponse = await self._calls.unary(
            _CREATE_RUN,
            request(runs_pb2.CreateRunRequest, run_id=run_id, run=run),
            timeout,
            metadata,
        )
        return response.run

    async def get_run(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """The run as it is now.

        name: "runs/{run}".
        """
        response: runs_pb2.GetRunResponse = await self._calls.unary(
            _GET_RUN, request(runs_pb2.GetRunRequest, name=name), timeout, metadata
        )
        return response.run

    def list_runs(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[runs_pb2.Run, runs_pb2.ListRunsResponse]:
        """Runs of all tenants, newest first, without their pipelines (GetRun gives each).

        page_size: How many at most; 0: 50, more than 1000: 1000. A page may have fewer although
          more follow.
        filter: Which ones, of AIP-160: comparisons joined by AND. Fields: state, display_name,
          name, create_time, update_time, end_time, owner.tenant, owner.key_id. As `state =
          RUNNING AND create_time >= "2026-11-01T00:00:00Z"`. Empty: all.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_RUNS, asked, timeout, metadata),
            request(runs_pb2.ListRunsRequest, page_size=page_size, filter=filter),
            "runs",
        )

    async def delete_run(
        self,
        name: str = "",
        *,
        allow_missing: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Forgets a run that has ended. What its steps published stays. FAILED_PRECONDITION
        (RUN_NOT_ENDED) while it has not ended: cancel it first.

        name: "runs/{run}".
        allow_missing: No error where there is no such run.
        """
        await self._calls.unary(
            _DELETE_RUN,
            request(runs_pb2.DeleteRunRequest, name=name, allow_missing=allow_missing),
            timeout,
            metadata,
        )

    async def cancel_run(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Cancels the running steps and ends the run. Of a run that has ended nothing changes. The
        answer comes once the run has ended, or after 3 s with the run as it is by then.

        name: "runs/{run}".
        """
        response: runs_pb2.CancelRunResponse = await self._calls.unary(
            _CANCEL_RUN, request(runs_pb2.CancelRunRequest, name=name), timeout, metadata
        )
        return response.run

    async def pause_run(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """No new step starts; running ones go on. FAILED_PRECONDITION when the run has ended
        (RUN_ENDED) or is being cancelled (RUN_CANCELLED). Answers as CancelRun does.

        name: "runs/{run}".
        """
        response: runs_pb2.PauseRunResponse = await self._calls.unary(
            _PAUSE_RUN, request(runs_pb2.PauseRunRequest, name=name), timeout, metadata
        )
        return response.run

    async def resume_run(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Goes on with a paused run. Errors and answer as of PauseRun.

        name: "runs/{run}".
        """
        response: runs_pb2.ResumeRunResponse = await self._calls.unary(
            _RESUME_RUN, request(runs_pb2.ResumeRunRequest, name=name), timeout, metadata
        )
        return response.run

    async def fork_run(
        self,
        name: str = "",
        *,
        run_id: str = "",
        from_step: str = "",
        overrides: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Starts a run that takes over what another one finished and does the rest with other
        settings. Idempotent by run_id, and refused, as CreateRun. FAILED_PRECONDITION when a
        step that is needed has not finished (STEP_UNFINISHED) or what it made is gone
        (ARTIFACT_GONE).

        name: The run to fork, "runs/{run}"; it may still be going on.
        run_id: Id of the new run; as in CreateRunRequest.
        from_step: The first step to be done anew; so is whatever needs it. The steps that it
          needs must have finished.
        overrides: As RunSpec.overrides; not for steps that are taken over.
        """
        response: runs_pb2.ForkRunResponse = await self._calls.unary(
            _FORK_RUN,
            request(
                runs_pb2.ForkRunRequest,
                name=name,
                run_id=run_id,
                from_step=from_step,
                overrides=overrides,
            ),
            timeout,
            metadata,
        )
        return response.run

    def watch_run(
        self,
        name: str = "",
        *,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[runs_pb2.WatchRunResponse, None]:
        """The run as it is now, then after each change, until it ends. Each state of the run and
        of its steps is told, in order; of progress in between the newest. While nothing
        changes, a response without a run comes at least every 15 s.

        name: "runs/{run}".
        resume_token: resume_token of the last response of a watch that broke: goes on behind
          it. Empty: begins with the run as it is. INVALID_ARGUMENT for one that WatchRun did
          not give.
        """
        return self._calls.stream(
            _WATCH_RUN,
            request(runs_pb2.WatchRunRequest, name=name, resume_token=resume_token),
            timeout,
            metadata,
        )
