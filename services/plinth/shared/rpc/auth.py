"""What proves a caller: the cluster's token and, with it, a principal in call metadata.

The token says that a stage or the gateway calls; only then is the principal that it names
believed. Other servers (the gateway's, with API keys) bring an Authenticator of their own.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from plinth.shared.errors import Unauthenticated
from plinth.shared.identity import MAX_REQUEST_ID_CHARS, REQUEST_ID, Principal

TOKEN_KEY = "x-plinth-token"  # noqa: S105 - the name of a metadata key
PRINCIPAL_KEY = "x-plinth-principal"
MAX_VALUE_BYTES = 4096
MAX_NAME_CHARS = 256
MAX_SCOPES = 32

Metadata = Iterable[tuple[str, str | bytes]]


class Authenticator(Protocol):
    """Who calls, from the call's metadata; raises Unauthenticated."""

    async def __call__(self, metadata: Metadata) -> Principal | None:
        """None: the credential is good and names nobody, which is enough for reflection only."""
        ...


class TokenAuthenticator:
    """Accepts the cluster's token; the principal that comes with it is taken as it is."""

    def __init__(self, token: str) -> None:
        if len(token) < 16:
            raise ValueError("a cluster token has at least 16 characters")
        self._token = token.encode("utf-8")

    async def __call__(self, metadata: Metadata) -> Principal | None:
        pairs = list(metadata)
        given = single_value(pairs, TOKEN_KEY)
        if given is None:
            raise Unauthenticated(
                f"this port answers to Plinth's own stages only: no {TOKEN_KEY} came with the "
                "call; clients enter by the gateway, with an API key",
                reason="TOKEN_MISSING",
            )
        if not hmac.compare_digest(given.encode("utf-8"), self._token):
            raise Unauthenticated(
                f"the {TOKEN_KEY} is not this cluster's; every part of one cluster must have the "
                "same PLINTH_CLUSTER_TOKEN or data directory",
                reason="TOKEN_WRONG",
            )
        principal = single_value(pairs, PRINCIPAL_KEY)
        return None if principal is None else parse_principal(principal)


def single_value(metadata: Metadata, key: str) -> str | None:
    """The one value of `key`, or None. Unauthenticated if repeated, too long or no text."""
    values = [value for name, value in metadata if name.lower() == key]
    if not values:
        return None
    if len(values) > 1:
        raise Unauthenticated(f"{key} came {len(values)} times; send it once", reason="METADATA")
    value = values[0]
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
        size = len(text.encode("utf-8"))
    except UnicodeError:
        raise Unauthenticated(f"{key} is no valid UTF-8", reason="METADATA") from None
    if size > MAX_VALUE_BYTES:
        raise Unauthenticated(
            f"{key} has {size} bytes; at most {MAX_VALUE_BYTES} are allowed", reason="METADATA"
        )
    return text


def valid_request_id(metadata: Metadata, key: str) -> str | None:
    """The caller's request id; None without one. Unauthenticated when it is malformed."""
    value = single_value(metadata, key)
    if value is not None and not REQUEST_ID.fullmatch(value):
        raise Unauthenticated(
            f"{key} must be 1 to {MAX_REQUEST_ID_CHARS} letters, digits, '.', '_', ':' or '-'",
            reason="METADATA",
        )
    return value


def encode_principal(principal: Principal) -> str:
    """JSON in ASCII, since metadata values are."""
    return json.dumps(
        {
            "tenant": principal.tenant,
            "key_id": principal.key_id,
            "scopes": sorted(principal.scopes),
        },
        separators=(",", ":"),
    )


def parse_principal(text: str) -> Principal:
    """Raises Unauthenticated that says what is wrong with it."""
    if text.count("[") + text.count("{") > 64:
        raise _malformed("must be an object of tenant, key_id and scopes")  # not nested deeply
    try:
        value = json.loads(text)
    except ValueError:
        raise _malformed("is no valid JSON") from None
    if not isinstance(value, dict) or set(value) != {"tenant", "key_id", "scopes"}:
        raise _malformed("must be an object of tenant, key_id and scopes")
    scopes = value["scopes"]
    if not isinstance(scopes, list) or len(scopes) > MAX_SCOPES or not all(map(_is_name, scopes)):
        raise _malformed(f"must list at most {MAX_SCOPES} scopes, each a non-empty string")
    return Principal(_name(value, "tenant"), _name(value, "key_id"), frozenset(scopes))


def _name(value: Mapping[str, Any], key: str) -> str:
    name = value[key]
    if not _is_name(name):
        raise _malformed(f"must have a {key} of 1 to {MAX_NAME_CHARS} printable characters")
    return str(name)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _malformed(what: str) -> Unauthenticated:
    return Unauthenticated(f"{PRINCIPAL_KEY} {what}", reason="PRINCIPAL_MALFORMED")
