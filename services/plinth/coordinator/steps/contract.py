"""What a kind of step is: a spec that can be checked, and work that can be done twice.

A step turns inputs (artifacts) into one output (an artifact reference) and figures. The driver
calls `execute` again after any interruption, so each kind makes its effects idempotent: a job by
its id, an artifact by its input digest, a deployment by its name. A kind knows nothing of runs'
records, of leases, or of other steps.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

from plinth.shared.api.owners import owner_of
from plinth.shared.canary import Canaries
from plinth.shared.fencing import Fence
from plinth.shared.identity import SYSTEM, Principal
from plinth.shared.records import DeploymentRecords
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactRecord, ArtifactStore

NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,39}$"

# "$corpus": what the step `corpus` publishes. Anything else: an artifact on the store
# ("smollm2", "chat@3", "chat:prod").
Input = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def absolute(value: str | None) -> str | None:
    """A path that a stage reads on its own machine, for validators of pydantic; None stays."""
    if value is not None and not value.startswith("/"):
        home = ", and ~ is nobody's home there" if value.startswith("~") else ""
        raise ValueError(
            f"must be an absolute path (/…), not {value[:200]!r}: a stage reads it, in a folder of "
            f"its own{home}"
        )
    return value


class StepSpec(BaseModel):
    """What a pipeline file may say of a step; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # Fields that hold inputs, and the kinds of artifact that each takes.
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {}

    kind: str
    # Steps that must be done first although nothing of theirs is an input.
    after: tuple[Name, ...] = Field(default=(), max_length=64)
    # Artifact name to publish under; None: "<pipeline>-<step>".
    output: Name | None = None

    def produces(self) -> str:
        """Kind of the artifact that the step's output refers to."""
        raise NotImplementedError

    def inputs(self) -> dict[str, str]:
        """Field → reference, for the inputs that are given."""
        given = {name: getattr(self, name) for name in self.INPUTS}
        return {name: reference for name, reference in given.items() if reference}

    def paths(self) -> dict[str, str]:
        """Field → path, for what the step reads from a stage's own machine (`source_roots`)."""
        return {}

    def conflicts(self, steps: Mapping[str, StepSpec]) -> Iterator[tuple[str, str]]:
        """(field, what is wrong) where this does not go with the pipeline's other steps."""
        yield from ()

    def misfits(
        self, field: str, record: ArtifactRecord, store: ArtifactStore
    ) -> Iterator[tuple[str, str]]:
        """(field, what is wrong) where this does not go with the artifact `record`, which `field`
        names; asked at submission, of what is on the store by then. May block."""
        yield from ()

    def settings(self) -> dict[str, Any]:
        """Everything that shapes the result beside the inputs, JSON-ready."""
        return self.model_dump(mode="json", exclude={"after", "output", *self.INPUTS})


@dataclass(frozen=True)
class Work:
    """One step of one run, with its inputs resolved."""

    run_id: str
    step: str
    spec: StepSpec
    inputs: Mapping[str, ArtifactRecord]
    input_digest: str
    output_name: str
    # The run's place in the order of submission: what its steps write is fenced by it.
    run_number: int = 0
    # On whose behalf its jobs are: the run's owner, who may also cancel them.
    principal: Principal = SYSTEM

    @property
    def job_id(self) -> str:
        """The same whenever this step of this run is taken up again."""
        return f"{self.run_id}.{self.step}.{self.input_digest.removeprefix('sha256:')[:16]}"

    @property
    def short_id(self) -> str:
        """The same, for ids that more is hung on: at most 66 characters."""
        run = sha256(self.run_id.encode()).hexdigest()[:8]
        return f"{run}.{self.step}.{self.input_digest.removeprefix('sha256:')[:16]}"


@dataclass(frozen=True)
class Tools:
    """What steps work with."""

    store: ArtifactStore
    deployments: DeploymentRecords
    registry: Registry
    clients: StageClients
    redis: Redis
    canaries: Canaries
    roots: SourceRoots

    def under(self, fence: Fence) -> Tools:
        """The same tools, whose every change of the world is fenced: a step needs no thought of
        leases and other runs."""
        return replace(
            self,
            store=self.store.under(fence),
            deployments=self.deployments.under(fence),
            canaries=self.canaries.under(fence),
        )

    def owned_by(self, principal: Principal) -> Tools:
        """The same tools; what is made by them is the principal's, and nobody's if a stage is."""
        if principal == SYSTEM:
            return self
        owner = owner_of(principal)
        return replace(
            self, store=self.store.owned_by(owner), deployments=self.deployments.owned_by(owner)
        )


@dataclass(frozen=True)
class Progress:
    """fraction: 0 to 1. detail: one line for people."""

    fraction: float
    detail: str


@dataclass(frozen=True)
class StepOutcome:
    """The end of a step. output: name@version. reused: the world was so already. passes_on: the
    input field whose artifact the output is, of a step that makes none but judges those it gets."""

    output: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reused: bool = False
    passes_on: str = ""


class StepKind(Protocol):
    """One file in `steps/` each."""

    @property
    def spec(self) -> type[StepSpec]: ...

    @property
    def pure(self) -> bool:
        """Whether an earlier result from the same inputs stands for this one. Not so for steps
        whose result is a state of the world (an alias, a served model)."""
        ...

    def surroundings(self, spec: Any, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        """What shapes the result beside spec and inputs; part of the input digest. May block, and
        reads no file outside of `roots`. PlinthError and OSError end the step."""
        ...

    def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        """Does the work, or takes it up again; the last item is the StepOutcome. Raises
        PlinthError: the transient ones (Unavailable, …) are tried again by the driver, others fail
        the step."""
        ...

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Ends work in flight, removes what it left in the world, and claims what it might still
        write, so that a coordinator that is late writes it no more. Idempotent."""
        ...
