"""What steps made, by the digest of what they made it from: records on the store.

A record is created exclusively and never changes, so of two coordinators that both believe to
lead, one publishes a result and the other learns of it; and a record of a higher fence refuses
a writer with a lower one. Blocking; called in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from plinth.coordinator.steps.contract import StepOutcome
from plinth.shared.errors import Aborted, NotFound
from plinth.shared.record_log import RecordLog
from plinth.shared.store import ArtifactRecord, ArtifactStore

NO_INPUTS: Final[Mapping[str, ArtifactRecord]] = MappingProxyType({})


class StepResults:
    """Finds and publishes results of steps; safe to share between threads and processes."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def on(self, store: ArtifactStore) -> StepResults:
        """The same results, with what `find` publishes being as `store` has it."""
        return StepResults(store)

    def find(
        self,
        input_digest: str,
        output_name: str = "",
        inputs: Mapping[str, ArtifactRecord] = NO_INPUTS,
    ) -> StepOutcome | None:
        """The result made from these inputs, while its artifact is still on the store.

        output_name, inputs: what the step that asks calls what it makes, and its inputs by field.
        They may be called otherwise than those of the step that made the result (the pipeline was
        renamed, or has a copy). What was made is published under this name too, without a copy of
        its files; where an input was passed on (the winner of a comparison), it is this step's own
        input of that field; and the figures name this step's inputs. Without a name: as recorded.
        """
        latest = self._log(input_digest).latest()
        if latest is None:
            return None
        record = latest[1]
        metrics = _renamed(record["metrics"], record.get("inputs", {}), inputs)
        if passed_on := record.get("passes_on", ""):
            return StepOutcome(inputs[passed_on].ref, metrics, True, passed_on)
        try:
            made = self._store.get(record["output"])
            called = record["output_name"] or made.name
            # Another digest: the name was deleted and given to something else. Another name: of an
            # earlier version, an input, and which one is not known.
            if made.digest != record["output_digest"] or made.name != called:
                return None
            if output_name not in ("", called):
                made = self._store.link(output_name, made)
        except NotFound:
            return None
        return StepOutcome(made.ref, metrics, reused=True)

    def stands(self, input_digest: str, made: ArtifactRecord) -> bool:
        """Whether the result made from these inputs has this content."""
        latest = self._log(input_digest).latest()
        return latest is not None and latest[1]["output_digest"] == made.digest

    def publish(
        self,
        input_digest: str,
        outcome: StepOutcome,
        *,
        fence: int,
        origin: Mapping[str, str],
        output_name: str = "",
        inputs: Mapping[str, ArtifactRecord] = NO_INPUTS,
    ) -> StepOutcome:
        """Records `outcome`, or gives back the one that another run was first to record.
        Aborted when a coordinator with a higher fence was here. origin: run and step, for people.
        output_name, inputs: as in `find`.
        """
        log = self._log(input_digest)
        while True:
            if (there := self.find(input_digest, output_name, inputs)) is not None:
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
                "passes_on": outcome.passes_on,
                "inputs": {field: one.ref for field, one in inputs.items()},
                "fence": fence,
                "origin": dict(origin),
            }
            if log.append(number + 1, record):
                return outcome

    def _log(self, input_digest: str) -> RecordLog:
        return RecordLog(self._store.storage, f"steps/{input_digest.removeprefix('sha256:')}")


def _renamed(value: Any, before: Mapping[str, str], now: Mapping[str, ArtifactRecord]) -> Any:
    """Figures with the references to inputs of then (by field) replaced by those of now."""
    names = {before[field]: record.ref for field, record in now.items() if field in before}
    if not names:
        return value
    any_of = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    reference = re.compile(rf"(?<![A-Za-z0-9._-])(?:{any_of})(?![0-9])")

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return reference.sub(lambda found: names[found[0]], value)
        if isinstance(value, list):
            return [walk(one) for one in value]
        if isinstance(value, dict):
            return {key: walk(one) for key, one in value.items()}
        return value

    return walk(value)
