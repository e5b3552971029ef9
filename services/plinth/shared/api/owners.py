"""Whose a resource is, and who may change it."""

from __future__ import annotations

from plinth.shared.errors import PermissionDenied
from plinth.shared.identity import SYSTEM, Principal, current_call
from plinth.v1 import owner_pb2


def owner_of(principal: Principal) -> owner_pb2.Owner:
    """What is recorded with a resource that `principal` makes."""
    return owner_pb2.Owner(tenant=principal.tenant, key_id=principal.key_id)


def calling_owner() -> owner_pb2.Owner:
    """The same for whoever is being served here; nobody's outside of a call and among stages."""
    call = current_call()
    if call is None or call.principal in (None, SYSTEM):
        return owner_pb2.Owner()
    return owner_of(call.principal)


def check_owner(owner: owner_pb2.Owner, principal: Principal, what: str) -> None:
    """PermissionDenied unless `principal` may change `what`: as a key of the tenant that made it,
    as an operator (scope "admin"), or where nobody is known to have made it."""
    if owner.tenant in ("", SYSTEM.tenant, principal.tenant) or "admin" in principal.scopes:
        return
    raise PermissionDenied(
        f"{what} was made by another tenant than {principal.tenant!r}: a key of that tenant may "
        "change it, or one with the scope 'admin'",
        reason="OTHER_TENANT",
    )
