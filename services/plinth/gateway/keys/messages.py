"""API keys as the public message, and lists of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from plinth.gateway.keys.entries import KeyEntry
from plinth.gateway.keys.records import KeyRecord, new_record
from plinth.shared.api import enums, times
from plinth.shared.api.etags import etag_of
from plinth.shared.api.filters import Field, Filters
from plinth.shared.api.resource_names import Pattern
from plinth.v1 import keys_pb2 as pb
from plinth.v1 import owner_pb2

KEY = Pattern("keys/{key}")
DEFAULT_TENANT = "default"


def message(entry: KeyEntry) -> pb.Key:
    """The key without its secret. Of a record that can't be read nothing but id and state."""
    record = entry.record
    found = pb.Key(name=KEY.name(entry.id), etag=etag_of(entry.raw))
    found.status.state = enums.number(pb.KeyState, state(entry))  # type: ignore[assignment]
    if record is None:
        return found
    found.spec.CopyFrom(
        pb.KeySpec(
            tenant=record.tenant,
            role=enums.number(pb.KeyRole, record.role),  # type: ignore[arg-type]
            scopes=sorted(record.scopes),
            label=record.label,
        )
    )
    found.status.scopes.extend(sorted(record.all_scopes))
    if (revoked := times.timestamp(record.revoked_unix_ms)) is not None:
        found.status.revoke_time.CopyFrom(revoked)
    if (created := times.timestamp(record.created_unix_ms)) is not None:
        found.create_time.CopyFrom(created)
    if record.made_by_key:
        found.owner.CopyFrom(
            owner_pb2.Owner(tenant=record.made_by_tenant, key_id=record.made_by_key)
        )
    return found


def state(entry: KeyEntry) -> str:
    """A word of KeyState."""
    if entry.record is None:
        return "unreadable"
    return "revoked" if entry.revoked else "active"


def wanted(spec: pb.KeySpec) -> KeyRecord:
    """What `spec` asks for, checked; without an id."""
    role = enums.word(pb.KeyRole, spec.role)
    return new_record("", spec.tenant or DEFAULT_TENANT, spec.scopes, spec.label, role=role)


def _of(entry: KeyEntry) -> KeyRecord:
    return entry.record or KeyRecord(entry.id, "", frozenset(), "", 0)


def _said(enum: Any) -> tuple[str, ...]:
    """As filters say them."""
    return tuple(word.upper() for word in enums.words(enum))


FILTERS = Filters(
    {
        "tenant": Field(lambda entry: _of(entry).tenant, str),
        "label": Field(lambda entry: _of(entry).label, str),
        "role": Field(lambda entry: _of(entry).role.upper(), str, _said(pb.KeyRole)),
        "scopes": Field(lambda entry: _of(entry).all_scopes, list),
        "state": Field(lambda entry: state(entry).upper(), str, _said(pb.KeyState)),
        "create_time": Field(lambda entry: times.moment(entry.created_unix_ms), datetime),
    }
)
