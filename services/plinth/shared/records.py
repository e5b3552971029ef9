"""Desired state on the store: which models are served, as numbered records per deployment.

Each change is a create-exclusive record; the newest wins. A writer that must not undo what it
has not seen passes the revision it knows. What a run's step writes carries the run's fence
(`fencing.py`): neither a coordinator that lost its lead nor an earlier run undoes it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from google.protobuf import json_format

from plinth.internal.v1 import deployments_pb2
from plinth.shared.aliases import ANY
from plinth.shared.api.owners import check_owner
from plinth.shared.deployment_rules import checked_alone
from plinth.shared.errors import (
    Aborted,
    DataLoss,
    InvalidArgument,
    NotFound,
)
from plinth.shared.fencing import Fence, admitted, numbers
from plinth.shared.identity import Principal
from plinth.shared.kinds import what_it_is
from plinth.shared.manifest import check_name
from plinth.shared.record_log import RecordLog
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import owner_pb2


class AsItIs(Enum):
    """In place of a deployment: whatever it is now."""

    AS_IT_IS = "as it is"


AS_IT_IS = AsItIs.AS_IT_IS


@dataclass(frozen=True)
class DeploymentChange:
    """One change of one deployment: its newest is what is wanted."""

    name: str
    revision: int
    # None: it was deleted.
    deployment: deployments_pb2.DeploymentRecord | None
    created_unix_ms: int
    # Run and leader that wrote last; see `fencing.py`.
    fence: Mapping[str, int] = field(default_factory=dict)


_DRAFT = "draft:"


class DeploymentRecords:
    """Served models as desired state. Blocking calls; safe to share between processes."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._logs: dict[str, RecordLog] = {}
        self._fence: Fence | None = None
        self._owner = owner_pb2.Owner()

    def under(self, fence: Fence) -> DeploymentRecords:
        """The same records, written in the name of `fence`: then `put` and `delete` raise what
        `fencing.admitted` says."""
        fenced = copy.copy(self)
        fenced._fence = fence
        return fenced

    def owned_by(self, owner: owner_pb2.Owner) -> DeploymentRecords:
        """The same records; a deployment that is made there is `owner`'s."""
        owned = copy.copy(self)
        owned._owner = owner
        return owned

    def put(
        self, deployment: deployments_pb2.DeploymentRecord, *, expected: int | None = ANY
    ) -> DeploymentChange:
        """Wants `deployment` from now on, its artifact resolved to a version.

        `expected`: the revision it must have now, None for none; left out, the last caller wins.
        Aborted: it has another one. InvalidArgument, NotFound: the deployment makes no sense.
        The same as what is wanted already changes nothing.
        """
        wanted = self.checked(deployment)
        if self._owner.tenant and not wanted.HasField("made_by"):
            wanted.made_by.CopyFrom(self._owner)
        return self._append(wanted.name, wanted, expected)

    def get(self, name: str) -> DeploymentChange | None:
        """The newest record of `name` (deleted or not); None: there never was one."""
        latest = self._log(name).latest()
        return None if latest is None else _parse(name, *latest)

    def names(self, after: str = "") -> list[str]:
        """Of what is or was served, in order, behind the name `after`."""
        return [name for name in self._store.storage.names("deployments") if name > after]

    def list(
        self, damaged: Callable[[str], None] | None = None
    ) -> list[deployments_pb2.DeploymentRecord]:
        """What is to be served, by name. damaged: is told the name of one that can't be read; left
        out, that is DataLoss."""
        found = []
        for name in self.names():
            try:
                change = self.get(name)
            except DataLoss:
                if damaged is None:
                    raise
                damaged(name)
            else:
                found += [change.deployment] if change and change.deployment else []
        return found

    def delete(self, name: str, *, expected: int | None = ANY) -> None:
        """Serves `name` no more. NotFound when it isn't served; Aborted as in `put`."""
        record = self.get(name)
        if record is None or record.deployment is None:
            if self._fence is not None:
                self.claim(name)  # nor does one that is late put it there
            raise NotFound(
                f"no deployment is called {name!r}", reason="DEPLOYMENT_NOT_FOUND", field="name"
            )
        self._append(name, None, expected)

    def claim(self, name: str) -> None:
        """Marks `name` with the leader's number and leaves what is wanted as it is: a leader that
        was deposed can't change it any more, any run can. Aborted: it is this one that was
        deposed."""
        self._append(name, AS_IT_IS, ANY)

    def _append(
        self,
        name: str,
        to: deployments_pb2.DeploymentRecord | AsItIs | None,
        expected: int | None,
    ) -> DeploymentChange:
        log = self._log(name)
        by = self._fence
        if by is not None and isinstance(to, AsItIs):
            by = by.of_claim()
        while True:
            now = self.get(name)
            revision = now.revision if now else None
            if expected not in (ANY, revision):
                raise Aborted(
                    f"deployment {name} is at revision {revision}, not {expected}: "
                    "somebody changed it",
                    reason="DEPLOYMENT_CHANGED",
                    metadata={"revision": str(revision)},
                )
            before = now.deployment if now else None
            wanted = before if isinstance(to, AsItIs) else _kept_owner(to, before)
            last = {"fence": now.fence} if now else None
            same = before == wanted
            fence = admitted(by, last, f"deployment {name}", same=same)
            if now is not None and same and fence == now.fence:
                return now
            number = (revision or 0) + 1
            created = time.time_ns() // 1_000_000
            as_json = json_format.MessageToDict(wanted) if wanted else None
            record = {
                "name": name,
                "deployment": as_json,
                "created_unix_ms": created,
                "fence": fence,
            }
            if log.append(number, record):
                made = DeploymentChange(name, number, wanted, created, fence)
                self._check_there(made, before)
                return made

    def _check_there(
        self, made: DeploymentChange, before: deployments_pb2.DeploymentRecord | None
    ) -> None:
        """NotFound, with what was wanted before wanted again, if the artifact was deleted
        meanwhile: who deletes marks it first and looks for deployments then, so one of both sees
        the other."""
        was = before.artifact if before else ""
        if made.deployment is None or made.deployment.artifact == was:
            return
        try:
            self._store.get(made.deployment.artifact)
        except NotFound:
            back = before if before is not None and self._stands(before) else None
            with suppress(Aborted, NotFound):  # somebody has changed it since
                self._append(made.name, back, made.revision)
            raise

    def _stands(self, wanted: deployments_pb2.DeploymentRecord) -> bool:
        try:
            self._store.get(wanted.artifact)
        except NotFound:
            return False
        return True

    def check_owner(self, name: str, principal: Principal) -> None:
        """PermissionDenied (OTHER_TENANT) if `name` is served, and by another tenant."""
        now = self.get(name)
        if now is not None and now.deployment is not None:
            check_owner(now.deployment.made_by, principal, f"deployment {name!r}")

    def checked(
        self, deployment: deployments_pb2.DeploymentRecord
    ) -> deployments_pb2.DeploymentRecord:
        """A copy with defaults filled in and its artifact resolved to a version, which `put` would
        write. InvalidArgument, NotFound as there."""
        wanted = checked_alone(deployment)
        artifact = self._referred(wanted.artifact, "artifact")
        if artifact.kind != "model":
            raise InvalidArgument(
                f"a deployment serves a model; {what_it_is(artifact, self._store)}",
                field="deployment.spec.artifact",
            )
        wanted.artifact = artifact.ref
        if wanted.speculation.startswith(_DRAFT):
            draft = self._referred(wanted.speculation.removeprefix(_DRAFT), "speculation.draft")
            if draft.kind != "model":
                raise InvalidArgument(
                    f"a draft is a model; {what_it_is(draft, self._store)}",
                    field="deployment.spec.speculation.draft",
                )
        return wanted

    def _referred(self, reference: str, field: str) -> ArtifactRecord:
        """InvalidArgument, NotFound, told of the field of the specification that it comes from."""
        try:
            return self._store.get(reference)
        except (InvalidArgument, NotFound) as wrong:
            wrong.field = f"deployment.spec.{field}"
            raise

    def _log(self, name: str) -> RecordLog:
        folder = f"deployments/{check_name(name, 'name')}"
        return self._logs.setdefault(name, RecordLog(self._store.storage, folder))


def _kept_owner(
    to: deployments_pb2.DeploymentRecord | None, before: deployments_pb2.DeploymentRecord | None
) -> deployments_pb2.DeploymentRecord | None:
    """What is changed stays whose it is."""
    if to is None or before is None:
        return to
    kept = deployments_pb2.DeploymentRecord()
    kept.CopyFrom(to)
    kept.ClearField("made_by")
    if before.HasField("made_by"):
        kept.made_by.CopyFrom(before.made_by)
    return kept


def _parse(name: str, number: int, record: dict[str, Any]) -> DeploymentChange:
    deployment = None
    if record["deployment"] is not None:
        try:
            deployment = json_format.ParseDict(
                record["deployment"], deployments_pb2.DeploymentRecord(), ignore_unknown_fields=True
            )
        except json_format.ParseError as error:
            raise DataLoss(
                f"record {number} of deployment {name} is damaged: {error}", reason="RECORD_DAMAGED"
            ) from error
    created = record["created_unix_ms"]
    return DeploymentChange(name, number, deployment, created, numbers(record))
