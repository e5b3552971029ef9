"""What steps made, by the digest of what they made it from: records on the store.

A record is created exclusively and never changes, so of two coordinators that both believe to
lead, one publishes a result and the other learns of it; and a record of a higher fence refuses
a writer with a lower one. Blocking; called in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plinth.coordinator.steps.contract import StepOutcome
from plinth.shared.errors import Aborted, NotFound
from plinth.shared.record_log import RecordLog
from plinth.shared.store import ArtifactStore


class StepResults:
    """Finds and publishes results of steps; safe to share between threads and processes."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def find(self, input_digest: str, output_name: str = "") -> StepOutcome | None:
        """The result made from these inputs, while its artifact is still on the store.

        output_name: what the step that asks calls what it makes. A result that was published under
        the name of another step (the pipeline was renamed, or has a copy) is published under this
        one too, without a copy of its files; one that is another artifact (the winner of a
        comparison) is given as it is. Left out: the result as it was recorded.
        """
        latest = self._log(input_digest).latest()
        if latest is None:
            return None
        record = latest[1]
        try:
            made = self._store.get(record["output"])
        except NotFound:
            return None
        if made.digest != record["output_digest"]:
            return None  # the name was deleted and given to something else
        called = record.get("output_name", "")
        if output_name and made.name == called != output_name:
            made = self._store.link(output_name, made)
        return StepOutcome(made.ref, record["metrics"], reused=True)

    def publish(
        self,
        input_digest: str,
        outcome: StepOutcome,
        *,
        fence: int,
        origin: Mapping[str, str],
        output_name: str = "",
    ) -> StepOutcome:
        """Records `outcome`, or gives back the one that another run was first to record.
        Aborted when a coordinator with a higher fence was here. origin: run and step, for people.
        output_name: as in `find`.
        """
        log = self._log(input_digest)
        while True:
            if (there := self.find(input_digest, output_name)) is not None:
                return there
            latest = log.latest()
            number, newest_fence = (latest[0], int(latest[1]["fence"])) if latest else (0, 0)
            if fence < newest_fence:
                raise Aborted(
                    f"fence {fence} is stale: {newest_fence} published here already",
                    reason="FENCE_STALE",
                )
            record: dict[str, Any] = {
                "input_digest": input_digest,
                "output": outcome.output,
                "output_digest": self._store.get(outcome.output).digest,
                "metrics": dict(outcome.metrics),
                "output_name": output_name,
                "fence": fence,
                "origin": dict(origin),
            }
            if log.append(number + 1, record):
                return outcome

    def _log(self, input_digest: str) -> RecordLog:
        return RecordLog(self._store.storage, f"steps/{input_digest.removeprefix('sha256:')}")
