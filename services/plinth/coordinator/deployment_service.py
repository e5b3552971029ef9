"""DeploymentService: served models as desired state, and verdicts on what they answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from plinth.coordinator import deployment_messages as messages
from plinth.coordinator.deployment_messages import DEPLOYMENT, Seen, record_etag
from plinth.coordinator.deployments import STAGE, holds
from plinth.coordinator.steps.contract import Tools
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.shared.answer_ids import check_answer_id
from plinth.shared.api import enums
from plinth.shared.api.etags import check_etag
from plinth.shared.api.field_masks import updated
from plinth.shared.api.listing import Damaged, page_of
from plinth.shared.api.owners import calling_owner, check_owner
from plinth.shared.api.paging import Pages
from plinth.shared.canary import answer_key
from plinth.shared.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from plinth.shared.identity import current_principal
from plinth.shared.manifest import check_name
from plinth.shared.records import DeploymentChange
from plinth.shared.registry import Replica
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import deployments_pb2 as pb
from plinth.v1 import deployments_pb2_grpc as rpc

T = TypeVar("T")
_See: TypeAlias = Callable[[internal.DeploymentRecord], Seen]
_SETTABLE = frozenset(f"spec.{name}" for name in pb.DeploymentSpec.DESCRIPTOR.fields_by_name)


class DeploymentServicer(rpc.DeploymentServiceServicer):
    """The RPCs; see deployments.proto."""

    def __init__(self, tools: Tools, pages: Pages) -> None:
        self._tools, self._pages = tools, pages
        self._records = tools.deployments

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.DeploymentService",
            lambda server: rpc.add_DeploymentServiceServicer_to_server(self, server),
        )

    # -- reading ---------------------------------------------------------------------------

    async def GetDeployment(
        self, request: pb.GetDeploymentRequest, context: Any
    ) -> pb.GetDeploymentResponse:
        name = DEPLOYMENT.id(request.name)
        change = await asyncio.to_thread(self._records.get, name)
        return pb.GetDeploymentResponse(deployment=await self._told(_present(name, change)))

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Any
    ) -> pb.ListDeploymentsResponse:
        wanted = messages.DEPLOYMENT_FILTERS.parse(request.filter)
        seen = await self._seen()

        def look(after: str, count: int) -> list[tuple[str, pb.Deployment | Damaged | None]]:
            names = self._records.names(after)[:count]
            return [(name, self._listed(name, seen)) for name in names]

        async def read(
            after: str, count: int
        ) -> Sequence[tuple[str, pb.Deployment | Damaged | None]]:
            return await asyncio.to_thread(look, after, count)

        page = await page_of(self._pages, request, read, wanted)
        return pb.ListDeploymentsResponse(
            deployments=page.found, next_page_token=page.token, unreachable=page.unreachable
        )

    def _listed(self, name: str, seen: _See) -> pb.Deployment | Damaged | None:
        try:
            change = self._records.get(name)
        except DataLoss:
            return Damaged(DEPLOYMENT.name(name))
        return _message(change, seen) if change and change.deployment else None

    # -- changing --------------------------------------------------------------------------

    async def CreateDeployment(
        self, request: pb.CreateDeploymentRequest, context: Any
    ) -> pb.CreateDeploymentResponse:
        name = check_name(request.deployment_id, "deployment_id")
        wanted = messages.record_of(name, request.deployment.spec)
        change = await asyncio.to_thread(self._create, wanted)
        return pb.CreateDeploymentResponse(deployment=await self._told(change))

    def _create(self, wanted: internal.DeploymentRecord) -> DeploymentChange:
        wanted = self._records.checked(wanted)
        while True:
            there = self._records.get(wanted.name)
            if there is not None and there.deployment is not None:
                if messages.spec_of(there.deployment) == messages.spec_of(wanted):
                    return there
                raise AlreadyExists(
                    f"{wanted.name!r} is served already, otherwise: update it, or take another "
                    "deployment_id",
                    reason="DEPLOYMENT_EXISTS",
                    field="deployment_id",
                )
            wanted.made_by.CopyFrom(calling_owner())
            if (made := self._written(wanted, there)) is not None:
                return made

    async def UpdateDeployment(
        self, request: pb.UpdateDeploymentRequest, context: Any
    ) -> pb.UpdateDeploymentResponse:
        change = await asyncio.to_thread(self._update, request)
        return pb.UpdateDeploymentResponse(deployment=await self._told(change))

    def _update(self, request: pb.UpdateDeploymentRequest) -> DeploymentChange:
        given = request.deployment
        name = DEPLOYMENT.id(given.name, "deployment.name")
        while True:
            there = self._records.get(name)
            present = pb.Deployment()
            if there is None or there.deployment is None:
                if not request.allow_missing:
                    raise _unknown(name)
                check_etag(given.etag, "", f"deployment {name!r}")  # it was seen, and is gone
            else:
                self._check_change(there.deployment, given.etag)
                present.spec.CopyFrom(messages.spec_of(there.deployment))
            spec = updated(present, given, request.update_mask, _SETTABLE).spec
            wanted = messages.record_of(name, spec)
            if there is None or there.deployment is None:
                wanted.made_by.CopyFrom(calling_owner())
            elif there.deployment.traffic_share:  # (as a pipeline's step writes it)
                wanted.traffic_share = there.deployment.traffic_share
            if (made := self._written(wanted, there)) is not None:
                return made

    async def DeleteDeployment(
        self, request: pb.DeleteDeploymentRequest, context: Any
    ) -> pb.DeleteDeploymentResponse:
        await asyncio.to_thread(self._delete, DEPLOYMENT.id(request.name), request.etag)
        return pb.DeleteDeploymentResponse()

    def _delete(self, name: str, etag: str) -> None:
        def delete() -> bool:
            there = _present(name, self._records.get(name))
            assert there.deployment is not None
            self._check_change(there.deployment, etag)
            self._records.delete(name, expected=there.revision)
            return True

        while not _unless_changed(delete):
            pass

    @staticmethod
    def _check_change(record: internal.DeploymentRecord, etag: str) -> None:
        """Raises unless whoever is being served may change it, from what they saw."""
        what = f"deployment {record.name!r}"
        if record.canary_of:
            raise FailedPrecondition(
                f"{what} is a canary of {record.canary_of!r}: the step of the run that made it "
                f"({record.owner}) watches it and takes it down; cancel that run to end it",
                reason="CANARY",
            )
        check_owner(record.made_by, current_principal(), what)
        check_etag(etag, record_etag(record), what)

    def _written(
        self, wanted: internal.DeploymentRecord, there: DeploymentChange | None
    ) -> DeploymentChange | None:
        """None: somebody else changed it since `there` was read."""
        revision = there.revision if there else None
        return _unless_changed(lambda: self._records.put(wanted, expected=revision))

    # -- verdicts --------------------------------------------------------------------------

    async def ReportOutcome(
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        name = check_name(DEPLOYMENT.id(request.name), "name")
        if not (request.response_id or request.revision):
            raise InvalidArgument("give one of response_id and revision", field="response_id")
        principal = current_principal()
        canaries = self._tools.canaries
        if request.revision:
            principal.require("runs")
            await asyncio.to_thread(self._records.check_owner, name, principal)
            role = await canaries.report_revision(name, request.revision, good=request.good)
        else:
            check_answer_id(request.response_id, "response_id")
            answer = answer_key(principal.tenant, request.response_id)
            role = await canaries.report(name, answer=answer, good=request.good)
        return pb.ReportOutcomeResponse(role=enums.number(pb.RevisionRole, role))  # type: ignore[arg-type]

    # -- telling ---------------------------------------------------------------------------

    async def _told(self, change: DeploymentChange) -> pb.Deployment:
        return _message(change, await self._seen())

    async def _seen(self) -> _See:
        """What is there, of any deployment, by one look."""
        registry = self._tools.registry
        shards = await registry.replicas(STAGE)
        announced = _announced(await registry.replicas("reconciler"))
        return lambda record: Seen(
            sum(holds(shard, record) for shard in shards), announced.get(record.name, {})
        )


def _message(change: DeploymentChange, seen: _See) -> pb.Deployment:
    assert change.deployment is not None
    record = change.deployment
    return messages.deployment_message(record, change.created_unix_ms, seen(record))


def _announced(reconcilers: list[Replica]) -> dict[str, dict[str, Any]]:
    """What the reconciler says of each model, by name."""
    for replica in reconcilers:
        return {one["name"]: one for one in json.loads(replica.fields.get("models", "[]"))}
    return {}


def _present(name: str, change: DeploymentChange | None) -> DeploymentChange:
    if change is None or change.deployment is None:
        raise _unknown(name)
    return change


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"no deployment is called {name!r}", reason="DEPLOYMENT_NOT_FOUND", field="name"
    )


def _unless_changed(act: Callable[[], T]) -> T | None:
    """What `act` gives; None where the deployment is no longer as it was read."""
    try:
        return act()
    except Aborted as error:
        if error.reason != "DEPLOYMENT_CHANGED":
            raise
        return None
