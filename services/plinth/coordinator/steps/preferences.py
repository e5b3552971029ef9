"""Step "preferences": the judged pairs of a collection become a corpus artifact.

The first time that a run's step is carried out, the number of judgements is recorded; whenever it
is taken up again it reads the same ones. The same pairs, selected in the same way, are the same
version, whichever run asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Literal

from pydantic import Field

from plinth.coordinator.preferences.dataset import DEFAULT_FRACTION, publish_pairs
from plinth.coordinator.preferences.pairs import SOURCES
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.report import snapshot
from plinth.coordinator.preferences.specs import MAX_NAME_CHARS
from plinth.coordinator.steps.contract import Progress, StepOutcome, StepSpec, Tools, Work
from plinth.shared.preference_names import DEFAULT_COLLECTION
from plinth.shared.source_roots import SourceRoots
from plinth.v1 import preferences_pb2 as pb


class PreferencesSpec(StepSpec):
    kind: Literal["preferences"]
    collection: str = Field(
        default=DEFAULT_COLLECTION,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$",
        max_length=MAX_NAME_CHARS,
    )
    # Whose judgements count; empty: everybody's.
    sources: tuple[Literal["human", "rule", "model"], ...] = Field(default=(), max_length=3)
    # Least share of a pair's judgements that must say the same.
    min_agreement: float = Field(default=0, ge=0, le=1)
    # Only the first judgements of the collection, up to this one; 0: all that there are.
    up_to: int = Field(default=0, ge=0)
    # Fewer pairs fail the step.
    at_least: int = Field(default=1, ge=1)
    validation_fraction: float = Field(default=DEFAULT_FRACTION, ge=0, lt=0.5)

    def produces(self) -> str:
        return "corpus"


class PreferencesStep:
    spec: type[StepSpec] = PreferencesSpec
    pure = False  # the judgements of a collection are a state of the world

    def surroundings(
        self, spec: PreferencesSpec, run_id: str, roots: SourceRoots
    ) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, PreferencesSpec)
        records = PreferenceRecords(tools.redis, spec.collection)
        revision = await records.pinned_revision(work.job_id)
        revision = min(spec.up_to, revision) if spec.up_to else revision
        yield Progress(0.0, f"reads {revision:,} judgements")
        seen = await snapshot(records, revision)
        record, reused = await asyncio.to_thread(
            publish_pairs,
            tools.store,
            work.output_name,
            seen,
            pb.PairSelection(
                sources=[SOURCES[word] for word in spec.sources], min_agreement=spec.min_agreement
            ),
            at_least=spec.at_least,
            validation_fraction=spec.validation_fraction,
        )
        yield StepOutcome(record.ref, record.manifest["metrics"], reused=reused)

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Nothing to do: the artifact was published whole or not at all."""
