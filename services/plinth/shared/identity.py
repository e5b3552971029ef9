"""Who calls, under which request id, until when; and the secrets that prove it.

A call's principal, request id and deadline live in one context variable, set where a call comes in
(the gRPC interceptors, or `call_scope` for REST and background work) and read by logs and clients.
Knows neither gRPC nor HTTP.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plinth.shared.errors import FailedPrecondition, PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from plinth.shared.settings import Settings

SCOPES = frozenset(
    {
        "inference",
        "tokenize",
        "rewards",
        "jobs",
        "runs",
        "artifacts",
        "deployments",
        "preferences",
        "metrics",
        "admin",
    }
)

# Named sets of them, for keys: what a role may do can grow with the platform.
ROLES: Mapping[str, frozenset[str]] = {
    "user": frozenset({"inference", "tokenize"}),
    "developer": frozenset(
        {"inference", "tokenize", "rewards", "jobs", "runs", "artifacts", "preferences"}
    ),
}


@dataclass(frozen=True)
class Principal:
    """On whose behalf a call is made; "admin" implies every scope."""

    tenant: str
    key_id: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raises PermissionDenied unless this principal holds `scope`."""
        if scope in self.scopes or "admin" in self.scopes:
            return
        raise PermissionDenied(
            f"key {self.key_id!r} lacks the scope {scope!r}; "
            f"it holds {', '.join(sorted(self.scopes)) or 'none'}",
            reason="SCOPE_MISSING",
            metadata={"scope": scope},
        )


# A client's own; and what follows it in the id of one part of its request, which a shard sees.
MAX_REQUEST_ID_CHARS = 128
MAX_PART_ID_CHARS = MAX_REQUEST_ID_CHARS + 32
REQUEST_ID = re.compile(rf"[A-Za-z0-9._:-]{{1,{MAX_REQUEST_ID_CHARS}}}")

_KEY_PREFIX = "plinth-"

SYSTEM = Principal("system", "system", frozenset({"admin"}))


@dataclass
class CallContext:
    """One call as its handler sees it. `deadline` is on time.monotonic()'s clock, in seconds."""

    request_id: str
    principal: Principal | None = None
    deadline: float | None = None
    # Set when the call ends: tasks that it started inherit this context and may outlive it, and
    # what they do then is no longer bound by the caller's deadline.
    ended: bool = field(default=False, compare=False)


_call: ContextVar[CallContext | None] = ContextVar("plinth_call", default=None)


def enter_call(call: CallContext) -> None:
    """Makes `call` the current one for this task and those that it starts."""
    _call.set(call)


def current_call() -> CallContext | None:
    """The call that this task works for; None outside of any."""
    return _call.get()


def current_principal() -> Principal:
    """The caller; Unauthenticated outside a call that passed the auth interceptor."""
    call = _call.get()
    if call is None or call.principal is None:
        raise Unauthenticated("no authenticated call is being served here")
    return call.principal


def may_list_artifacts() -> bool:
    """Whether the call that is being served is a person's who may list artifacts. Not so for work
    in the background and for stages that call each other: what goes wrong there is told to
    somebody else later, as a run's or a job's error."""
    principal = None if (call := _call.get()) is None else call.principal
    if principal is None or principal == SYSTEM:
        return False
    return not principal.scopes.isdisjoint({"artifacts", "admin"})


def current_request_id() -> str:
    """The request id of this call; empty outside of any."""
    call = _call.get()
    return "" if call is None else call.request_id


def remaining_s() -> float | None:
    """Seconds until this call's deadline, at least 0; None when it has none or has ended."""
    call = _call.get()
    if call is None or call.deadline is None or call.ended:
        return None
    return max(0.0, call.deadline - time.monotonic())


@contextmanager
def call_scope(
    *, request_id: str = "", principal: Principal | None = None, timeout_s: float | None = None
) -> Iterator[CallContext]:
    """A call that did not come in by gRPC: a REST request, a queued job, a background loop."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    call = CallContext(request_id or new_request_id(), principal, deadline)
    token = _call.set(call)
    try:
        yield call
    finally:
        call.ended = True
        _call.reset(token)


def new_request_id() -> str:
    """32 hexadecimal digits."""
    return uuid.uuid4().hex


def part_id(request_id: str, sample: int, attempt: int) -> str:
    """The id of one sample's attempt at a shard; at most MAX_PART_ID_CHARS."""
    part = f"{request_id}.{sample}.{attempt}"
    assert len(part) <= MAX_PART_ID_CHARS, part
    return part


def is_api_key(text: str) -> bool:
    """Whether it looks like one."""
    return text.startswith(_KEY_PREFIX)


def new_api_key() -> tuple[str, str]:
    """(the key to show once, its hash to keep)."""
    plain = _KEY_PREFIX + secrets.token_urlsafe(32)
    return plain, hash_api_key(plain)


def hash_api_key(plain: str) -> str:
    """SHA-256 in hex. Keys hold 256 random bits, so a slow password hash would add nothing."""
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def cluster_token(settings: Settings) -> str:
    """What stages prove themselves with: from settings, else made once under <data_dir>/secrets.

    Raises FailedPrecondition when the file is empty or readable by others.
    """
    if settings.cluster_token is not None:
        return settings.cluster_token.get_secret_value()
    path = settings.ensure_secrets_dir() / "cluster-token"
    if not path.exists():
        create_secret(path, secrets.token_urlsafe(32))
    mode = path.stat().st_mode
    if mode & 0o077:
        raise FailedPrecondition(
            f"{path} is readable by others (mode {mode & 0o777:o}); chmod 600 it, or delete it "
            "so that a new token is made"
        )
    token = path.read_text("ascii").strip()
    if len(token) < 16:
        raise FailedPrecondition(f"{path} holds no token; delete it so that a new one is made")
    return token


def create_secret(path: Path, value: str) -> None:
    """Two processes that start at once end up with one and the same file."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails if it exists: the first one wins, whole or not at all
        except FileExistsError:
            return
    finally:
        draft.unlink()
