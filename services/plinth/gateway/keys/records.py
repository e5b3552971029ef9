"""What is kept of an API key: a JSON object in a Redis hash, under the SHA-256 of the key.

Written by this version, read by later and earlier ones too: fields that nobody here knows are
passed over, and kept when a record is written again. A record without what decides (whose key it
is, what it may do, whether it was revoked) admits nobody. What decides nothing (label, time) is
made such that every list can show it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.shared.identity import ROLES, SCOPES, SYSTEM, Principal
from plinth.shared.redis_keys import check_part
from plinth.shared.rpc.auth import (
    MAX_NAME_CHARS,
    MAX_SCOPES,
    MAX_VALUE_BYTES,
    encode_principal,
)

MAX_LABEL_CHARS = 200
_SHOWN = 8
_NAME = f"a printable string of 1 to {MAX_NAME_CHARS} characters"
_LATEST_UNIX_MS = 253_402_300_799_999  # the end of the year 9999


@dataclass(frozen=True)
class KeyRecord:
    """What is kept of a key.

    scopes: beside those of its role. role: a word of identity.ROLES, or empty. made_by_tenant,
    made_by_key: whose key asked for it; empty where none did.
    """

    key_id: str
    tenant: str
    scopes: frozenset[str]
    label: str
    created_unix_ms: int
    revoked: bool = False
    role: str = ""
    revoked_unix_ms: int = 0
    made_by_tenant: str = ""
    made_by_key: str = ""

    @property
    def all_scopes(self) -> frozenset[str]:
        """Those of its role too."""
        return self.scopes | ROLES.get(self.role, frozenset())

    def principal(self) -> Principal:
        """On whose behalf a call with this key is made."""
        return Principal(self.tenant, self.key_id, self.all_scopes)

    def to_json(self) -> str:
        """As it is kept."""
        fields = {**self.__dict__, "scopes": sorted(self.scopes)}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: bytes | str) -> KeyRecord:
        """DataLoss, saying which field is wrong, when it can't be read."""
        fields = _object(text)
        key_id, tenant, scopes = (fields.get(name) for name in ("key_id", "tenant", "scopes"))
        revoked = fields.get("revoked")
        if not _is_name(key_id):
            raise DataLoss(f"key_id must be {_NAME}")
        try:
            tenant = check_part(tenant if isinstance(tenant, str) else "", "tenant")
        except InvalidArgument as error:
            raise DataLoss(error.message) from error
        if not isinstance(scopes, list) or not all(map(_is_name, scopes[: MAX_SCOPES + 1])):
            raise DataLoss(f"scopes must be a list, each {_NAME}")
        if len(scopes) > MAX_SCOPES:
            raise DataLoss(f"scopes must be at most {MAX_SCOPES}")
        if not isinstance(revoked, bool):
            raise DataLoss("revoked must be true or false")
        record = cls(
            key_id=str(key_id),
            tenant=tenant,
            scopes=frozenset(scopes),
            label=_label(fields.get("label")),
            created_unix_ms=_time(fields.get("created_unix_ms")),
            revoked=revoked,
            role=_role(fields.get("role")),
            revoked_unix_ms=_time(fields.get("revoked_unix_ms")),
            made_by_tenant=_label(fields.get("made_by_tenant")),
            made_by_key=_label(fields.get("made_by_key")),
        )
        if (size := len(encode_principal(record.principal()))) > MAX_VALUE_BYTES:
            raise DataLoss(
                f"tenant, key_id and scopes have {size} bytes; stages take {MAX_VALUE_BYTES}"
            )
        return record


def new_record(
    key_id: str,
    tenant: str,
    scopes: Collection[str],
    label: str,
    *,
    role: str = "",
    made_by: Principal | None = None,
) -> KeyRecord:
    """A record made now. InvalidArgument for a scope or role that isn't one, none at all, and a
    tenant or label that can't be one."""
    check_part(tenant, "tenant")
    if tenant == SYSTEM.tenant:
        raise InvalidArgument(
            f"tenant {tenant!r} is the platform's own, whose resources anybody may change; "
            "choose another name",
            field="tenant",
        )
    check_scopes(scopes, role)
    check_label(label)
    by = (made_by.tenant, made_by.key_id) if made_by is not None else ("", "")
    return KeyRecord(
        key_id,
        tenant,
        frozenset(scopes),
        label,
        now_ms(),
        role=role,
        made_by_tenant=by[0],
        made_by_key=by[1],
    )


def check_scopes(scopes: Collection[str], role: str) -> None:
    """InvalidArgument for what is no scope or role, and for a key that could do nothing."""
    unknown = sorted(set(scopes) - SCOPES)
    if unknown or not (scopes or role):
        raise InvalidArgument(
            f"scopes: {', '.join(map(repr, unknown[:_SHOWN])) or 'none given'}; "
            f"choose from {', '.join(sorted(SCOPES))}, or a role",
            reason="SCOPE_UNKNOWN",
            field="scopes",
        )
    if role and role not in ROLES:
        raise InvalidArgument(
            f"role: {role!r} is none of {', '.join(sorted(ROLES))}",
            reason="ROLE_UNKNOWN",
            field="role",
        )


def check_label(label: str) -> None:
    """InvalidArgument for one that a list can't show."""
    if len(label) > MAX_LABEL_CHARS or not label.isprintable():
        raise InvalidArgument(f"label: up to {MAX_LABEL_CHARS} printable characters", field="label")


def unreadable_record(key_id: str) -> KeyRecord:
    """What takes the place of a record that can't be read when its key is revoked."""
    return KeyRecord(
        key_id, "unknown", frozenset(), "was unreadable", 0, True, revoked_unix_ms=now_ms()
    )


def changed_json(text: bytes | str, **changes: Any) -> str:
    """The record as it is kept with some fields changed, and those that nobody here knows as they
    were; DataLoss when it is no JSON object."""
    return json.dumps({**_object(text), **changes}, sort_keys=True)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _object(text: bytes | str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataLoss(f"no JSON ({type(error).__name__})") from error
    if not isinstance(fields, dict):
        raise DataLoss(f"a JSON {type(fields).__name__}, not an object")
    return fields


def _label(value: object) -> str:
    """Without what would act on a terminal, or can't be written to one."""
    shown = value[:MAX_LABEL_CHARS] if isinstance(value, str) else ""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)


def _time(value: object) -> int:
    whole = isinstance(value, int) and 0 <= value <= _LATEST_UNIX_MS
    return int(value) if whole else 0  # type: ignore[call-overload]


def _role(value: object) -> str:
    """Empty for one of a newer version: what it may do is not known here."""
    return value if isinstance(value, str) and value in ROLES else ""


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()
