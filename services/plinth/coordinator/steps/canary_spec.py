"""What a pipeline may say of a canary, and whether what it says can be decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from plinth.coordinator.canary_gates import CanaryRequire, Gate, detectable, gates_of
from plinth.coordinator.steps.contract import Input, Name, StepSpec
from plinth.shared.canary import MAX_SHARE


class CanarySpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {"model": frozenset({"model"})}

    kind: Literal["canary"]
    model: Input  # the candidate
    # The served name whose requests it shares.
    name: Name
    share: float = Field(default=0.1, gt=0, le=MAX_SHARE)
    # The same user (OpenAI's `user`) keeps one revision; the share is then held to 2 points.
    sticky: bool = False
    # It is decided as soon as what `require` asks is clear. After so many requests of the canary
    # (null: any number), or so many seconds, it is undecided: it goes, and nothing is promoted.
    requests: int | None = Field(default=None, ge=1, le=10_000_000)
    seconds: float = Field(default=3600, gt=0, le=30 * 86_400)
    require: CanaryRequire = CanaryRequire()
    alias: Name = "prod"
    shards: int = Field(default=1, ge=1, le=64)
    ready_within_s: float = Field(default=600, gt=0, le=86_400)
    # How long streams of the revision that goes may take to end; 600 is the longest by default.
    drain_within_s: float = Field(default=600, ge=0, le=86_400)

    @model_validator(mode="after")
    def _asks_for_something(self) -> CanarySpec:
        if not gates_of(self.require):
            raise ValueError(
                "require asks for nothing, so nothing would ever be clear; leave one of "
                "error_share_above_at_most, ttft_p95_ratio_at_most, good_share_below_at_most"
            )
        return self

    def produces(self) -> str:
        return "model"

    def conflicts(self, steps: Mapping[str, StepSpec]) -> Iterator[tuple[str, str]]:
        for gate in gates_of(self.require):
            fewest = gate.fewest(self.share)
            if fewest is None:
                yield (
                    f"require.{gate.NAME}",
                    (
                        f"{gate.bar:g} allows any share of failures, so that no number of requests "
                        "would show anything; give less, such as 0.5, or null to not ask for it"
                    ),
                )
            elif self.requests is not None and self.requests < fewest:
                yield "requests", self._too_few(gate, fewest)

    def _too_few(self, gate: Gate, fewest: int) -> str:
        assert self.requests is not None
        bar = detectable(gate, self.share, self.requests)
        other = "don't ask for it: null" if bar is None else f"allow {bar:g}"
        return (
            f"{self.requests:,} of the canary can't show that it keeps to {gate.NAME}: "
            f"{gate.bar:g}, which takes {gate.plan(self.share)}; give at least {fewest:,}, or null "
            f"for as many as it takes, or {other} in require.{gate.NAME}"
        )

    def plan(self) -> str:
        """How many requests of the canary a decision takes, told before there are any."""
        sizes = "; ".join(gate.plan(self.share) for gate in gates_of(self.require))
        return f"takes, at a share of {self.share:g}, {sizes}"
