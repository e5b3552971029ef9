"""Deployments as the public API tells of them (deployments.proto), and back into records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from plinth.internal.v1 import deployments_pb2 as internal
from plinth.shared.api import enums
from plinth.shared.api.etags import etag_of
from plinth.shared.api.filters import Field, Filters
from plinth.shared.api.resource_names import Pattern
from plinth.shared.api.times import instant, timestamp
from plinth.shared.errors import InvalidArgument
from plinth.v1 import deployments_pb2 as pb

DEPLOYMENT = Pattern("deployments/{deployment}")
_DRAFT = "draft:"
_SAME = (
    "artifact",
    "shards",
    "max_shards",
    "cpus_per_shard",
    "gpus_per_shard",
    "kv_cache_bytes",
)


@dataclass(frozen=True)
class Seen:
    """What is there of a deployment. state: the reconciler's word; empty: it has not said."""

    ready_shards: int = 0
    announced: Mapping[str, Any] = field(default_factory=dict)


def deployment_message(
    record: internal.DeploymentRecord, changed_unix_ms: int, seen: Seen
) -> pb.Deployment:
    """The resource; `seen` is what is there of it now."""
    return pb.Deployment(
        name=DEPLOYMENT.name(record.name),
        spec=spec_of(record),
        status=_status(record, seen),
        owner=record.made_by if record.HasField("made_by") else None,
        etag=record_etag(record),
        update_time=timestamp(changed_unix_ms),
    )


_STATES = tuple(state.upper() for state in enums.words(pb.DeploymentState))

DEPLOYMENT_FILTERS = Filters(
    {
        "name": Field(lambda one: one.name, str),
        "state": Field(
            lambda one: enums.word(pb.DeploymentState, one.status.state).upper(), str, _STATES
        ),
        "artifact": Field(lambda one: one.spec.artifact, str),
        "canary.deployment": Field(lambda one: one.status.canary.deployment, str),
        "owner.tenant": Field(lambda one: one.owner.tenant, str),
        "owner.key_id": Field(lambda one: one.owner.key_id, str),
        "update_time": Field(lambda one: instant(one.update_time), datetime),
    }
)


def record_etag(record: internal.DeploymentRecord) -> str:
    """Of what is wanted, whoever made it so."""
    return etag_of(record)


def spec_of(record: internal.DeploymentRecord) -> pb.DeploymentSpec:
    spec = pb.DeploymentSpec(**{name: getattr(record, name) for name in _SAME})
    if record.speculation:
        mode, _, draft = record.speculation.partition(":")
        spec.speculation.mode = enums.number(pb.SpeculationMode, mode)  # type: ignore[assignment]
        spec.speculation.draft = draft
    return spec


def record_of(name: str, spec: pb.DeploymentSpec) -> internal.DeploymentRecord:
    """What to write for a specification; not checked but for its speculation (InvalidArgument)."""
    record = internal.DeploymentRecord(name=name, speculation=_speculation(spec.speculation))
    for same in _SAME:
        setattr(record, same, getattr(spec, same))
    return record


def _speculation(spec: pb.SpeculationSpec) -> str:
    needs_draft = spec.mode == pb.SPECULATION_MODE_DRAFT
    if needs_draft != bool(spec.draft):
        raise InvalidArgument(
            "name a model to guess with mode SPECULATION_MODE_DRAFT, and only then"
            f" (mode {pb.SpeculationMode.Name(spec.mode)}, draft {spec.draft[:80]!r})",
            field="deployment.spec.speculation.draft",
        )
    word = enums.word(pb.SpeculationMode, spec.mode)
    return f"{_DRAFT}{spec.draft}" if needs_draft else word


def _status(record: internal.DeploymentRecord, seen: Seen) -> pb.DeploymentStatus:
    told = seen.announced
    # The reconciler may not have seen yet that another artifact is wanted.
    if told.get("artifact") != record.artifact:
        told = {"state": "starting"} if told else {}
    state = str(told.get("state", ""))
    status = pb.DeploymentStatus(
        state=enums.number(pb.DeploymentState, state),  # type: ignore[arg-type]
        detail=str(told.get("detail", "")),
        ready_shards=seen.ready_shards,
        wanted_shards=int(told.get("shards", record.shards)),
    )
    if record.canary_of:
        status.canary.deployment = DEPLOYMENT.name(record.canary_of)
        status.canary.traffic_share = record.traffic_share
        status.canary.stable = record.stable
        status.canary.step = record.owner
    return status
