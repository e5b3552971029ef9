"""Who asks, by the key that a REST request brings."""

from __future__ import annotations

from fastapi import Request

from plinth.gateway.core import GatewayCore
from plinth.shared.identity import Principal, current_call


async def authenticate(core: GatewayCore, request: Request) -> Principal:
    """Who asks; the call's context knows from here on."""
    principal = await core.keyring.bearer(request.headers.get("authorization"))
    call = current_call()
    assert call is not None, "RequestMiddleware opens one"
    call.principal = principal
    return principal
