"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import runs_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_SUBMIT_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "SubmitRun")
_GET_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "GetRun")
_LIST_RUNS = Method.of(runs_pb2.DESCRIPTOR, "RunService", "ListRuns")
_WATCH_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "WatchRun")
_PAUSE_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "PauseRun")
_RESUME_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "ResumeRun")
_CANCEL_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "CancelRun")
_FORK_RUN = Method.of(runs_pb2.DESCRIPTOR, "RunService", "ForkRun")


class RunService:
    """Runs of pipelines."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def submit_run(
        self,
        run_id: str = "",
        *,
        pipeline_yaml: str = "",
        overrides: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Starts a run of a pipeline. Idempotent by run_id: the same request again gives the run
        that it made, another request under that id ALREADY_EXISTS.

        overrides: Overrides by path, "steps.corpus.corpus_dir=/data".
        """
        response: runs_pb2.SubmitRunResponse = self._calls.unary(
            _SUBMIT_RUN,
            request(
                runs_pb2.SubmitRunRequest,
                run_id=run_id,
                pipeline_yaml=pipeline_yaml,
                overrides=overrides,
            ),
            timeout,
            metadata,
        )
        return response.run

    def get_run(
        self,
        run_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        response: runs_pb2.GetRunResponse = self._calls.unary(
            _GET_RUN, request(runs_pb2.GetRunRequest, run_id=run_id), timeout, metadata
        )
        return response.run

    def list_runs(
        self,
        limit: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.ListRunsResponse:
        response: runs_pb2.ListRunsResponse = self._calls.unary(
            _LIST_RUNS, request(runs_pb2.ListRunsRequest, limit=limit), timeout, metadata
        )
        return response

    def watch_run(
        self,
        run_id: str = "",
        *,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[runs_pb2.WatchRunResponse, None, None]:
        """The run as it is now, then after each change, until it ends. Each state of the run and
        of its steps is told, in order; of progress in between the newest.

        resume_token: Of the last response of a watch that broke: goes on after it.
        """
        return self._calls.stream(
            _WATCH_RUN,
            request(runs_pb2.WatchRunRequest, run_id=run_id, resume_token=resume_token),
            timeout,
            metadata,
        )

    def pause_run(
        self,
        run_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """No new step starts; the running one goes on."""
        response: runs_pb2.PauseRunResponse = self._calls.unary(
            _PAUSE_RUN, request(runs_pb2.PauseRunRequest, run_id=run_id), timeout, metadata
        )
        return response.run

    def resume_run(
        self,
        run_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        response: runs_pb2.ResumeRunResponse = self._calls.unary(
            _RESUME_RUN, request(runs_pb2.ResumeRunRequest, run_id=run_id), timeout, metadata
        )
        return response.run

    def cancel_run(
        self,
        run_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Cancels the running step and ends the run."""
        response: runs_pb2.CancelRunResponse = self._calls.unary(
            _CANCEL_RUN, request(runs_pb2.CancelRunRequest, run_id=run_id), timeout, metadata
        )
        return response.run

    def fork_run(
        self,
        run_id: str = "",
        *,
        source_run_id: str = "",
        from_step: str = "",
        overrides: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """A new run that takes over what another one finished and does the rest with other
        settings. Idempotent by run_id, as SubmitRun.

        run_id: Of the new run.
        source_run_id: The run to fork; it may still be going on.
        from_step: The first step to be done anew; so is whatever needs it. The steps that it
          needs must be finished.
        overrides: As in SubmitRunRequest; not for steps that are taken over.
        """
        response: runs_pb2.ForkRunResponse = self._calls.unary(
            _FORK_RUN,
            request(
                runs_pb2.ForkRunRequest,
                run_id=run_id,
                source_run_id=source_run_id,
                from_step=from_step,
                overrides=overrides,
            ),
            timeout,
            metadata,
        )
        return response.run


class AsyncRunService:
    """Runs of pipelines."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def submit_run(
        self,
        run_id: str = "",
        *,
        pipeline_yaml: str = "",
        overrides: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Starts a run of a pipeline. Idempotent by run_id: the same request again gives the run
        that it made, another request under that id ALREADY_EXISTS.

        overrides: Overrides by path, "steps.corpus.corpus_dir=/data".
        """
        response: runs_pb2.SubmitRunResponse = await self._calls.unary(
            _SUBMIT_RUN,
            request(
                runs_pb2.SubmitRunRequest,
                run_id=run_id,
                pipeline_yaml=pipeline_yaml,
                overrides=overrides,
            ),
            timeout,
            metadata,
        )
        return response.run

    async def get_run(
        self,
        run_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        response: runs_pb2.GetRunResponse = await self._calls.unary(
            _GET_RUN, request(runs_pb2.GetRunRequest, run_id=run_id), timeout, metadata
        )
        return response.run

    async def list_runs(
        self,
        limit: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.ListRunsResponse:
        response: runs_pb2.ListRunsResponse = await self._calls.unary(
            _LIST_RUNS, request(runs_pb2.ListRunsRequest, limit=limit), timeout, metadata
        )
        return response

    def watch_run(
        self,
        run_id: str = "",
        *,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[runs_pb2.WatchRunResponse, None]:
        """The run as it is now, then after each change, until it ends. Each state of the run and
        of its steps is told, in order; of progress in between the newest.

        resume_token: Of the last response of a watch that broke: goes on after it.
        """
        return self._calls.stream(
            _WATCH_RUN,
            request(runs_pb2.WatchRunRequest, run_id=run_id, resume_token=resume_token),
            timeout,
            metadata,
        )

    async def pause_run(
        self,
        run_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """No new step starts; the running one goes on."""
        response: runs_pb2.PauseRunResponse = await self._calls.unary(
            _PAUSE_RUN, request(runs_pb2.PauseRunRequest, run_id=run_id), timeout, metadata
        )
        return response.run

    async def resume_run(
        self,
        run_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        response: runs_pb2.ResumeRunResponse = await self._calls.unary(
            _RESUME_RUN, request(runs_pb2.ResumeRunRequest, run_id=run_id), timeout, metadata
        )
        return response.run

    async def cancel_run(
        self,
        run_id: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """Cancels the running step and ends the run."""
        response: runs_pb2.CancelRunResponse = await self._calls.unary(
            _CANCEL_RUN, request(runs_pb2.CancelRunRequest, run_id=run_id), timeout, metadata
        )
        return response.run

    async def fork_run(
        self,
        run_id: str = "",
        *,
        source_run_id: str = "",
        from_step: str = "",
        overrides: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> runs_pb2.Run:
        """A new run that takes over what another one finished and does the rest with other
        settings. Idempotent by run_id, as SubmitRun.

        run_id: Of the new run.
        source_run_id: The run to fork; it may still be going on.
        from_step: The first step to be done anew; so is whatever needs it. The steps that it
          needs must be finished.
        overrides: As in SubmitRunRequest; not for steps that are taken over.
        """
        response: runs_pb2.ForkRunResponse = await self._calls.unary(
            _FORK_RUN,
            request(
                runs_pb2.ForkRunRequest,
                run_id=run_id,
                source_run_id=source_run_id,
                from_step=from_step,
                overrides=overrides,
            ),
            timeout,
            metadata,
        )
        return response.run
