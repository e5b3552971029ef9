"""plinth.client as the commands about runs use it: by a run's id, as it is typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from plinth.client import Client
from plinth.v1 import artifacts_pb2, runs_pb2

_PAGE = 200


class RunClient(Client):
    """Runs and artifacts."""

    def submit(self, run_id: str, pipeline_yaml: str, overrides: Mapping[str, str]) -> runs_pb2.Run:
        """Idempotent by `run_id`."""
        spec = runs_pb2.RunSpec(pipeline_yaml=pipeline_yaml, overrides=overrides)
        return self.runs.create_run(run_id, run=runs_pb2.Run(spec=spec))

    def fork(
        self, run_id: str, source: str, from_step: str, overrides: Mapping[str, str]
    ) -> runs_pb2.Run:
        """A new run from what `source` finished. Idempotent by `run_id`."""
        return self.runs.fork_run(
            _name(source), run_id=run_id, from_step=from_step, overrides=overrides
        )

    def watch(self, run_id: str) -> Iterator[runs_pb2.Run]:
        """The run, again after each change, each of its states once, until it ends."""
        for event in self.runs.watch_run(_name(run_id)):
            yield event.run

    def get(self, run_id: str) -> runs_pb2.Run:
        return self.runs.get_run(_name(run_id))

    def newest(self, limit: int) -> list[runs_pb2.Run]:
        """Newest first."""
        return list(islice(self.runs.list_runs(page_size=min(limit, _PAGE)), limit))

    def pause(self, run_id: str) -> runs_pb2.Run:
        return self.runs.pause_run(_name(run_id))

    def resume(self, run_id: str) -> runs_pb2.Run:
        return self.runs.resume_run(_name(run_id))

    def cancel(self, run_id: str) -> runs_pb2.Run:
        return self.runs.cancel_run(_name(run_id))

    def delete(self, run_id: str) -> None:
        self.runs.delete_run(_name(run_id))

    def artifact(self, reference: str) -> artifacts_pb2.Artifact:
        """reference: "chat@7"."""
        return self.artifacts.get_artifact(f"artifacts/{reference}")


def _name(run_id: str) -> str:
    return f"runs/{run_id}"
