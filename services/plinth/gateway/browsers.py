"""Pages in a browser that call the REST API from an origin of their own.

Where clients need keys a page has to bring one, so any may ask. Without keys whoever reaches the
port is admin, a page that somebody merely looks at among them: it can't read the answers then, but
what it sends as a form would be done all the same. https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from plinth.gateway.error_handlers import answer_to
from plinth.shared.errors import PermissionDenied
from plinth.shared.settings_sections import GatewaySettings

_PREFLIGHT_S = 3600  # for which a browser need not ask again


def for_browsers(app: ASGIApp, settings: GatewaySettings) -> ASGIApp:
    """CORS for the origins of `settings`. Without credentials in the standard's sense: a page has
    to bring a key of its own, and no cookie is ever read."""
    keyless = settings.auth == "off"
    origins = settings.cors_origins
    if origins is None:
        origins = () if keyless else ("*",)
    if keyless and "*" not in origins:
        app = OtherOriginsRefused(app, origins)
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("*",),
        max_age=_PREFLIGHT_S,
    )


class OtherOriginsRefused:
    """403 for what a page of another origin sends; only browsers say where they come from."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        if origin is None or origin in self._origins:
            await self._app(scope, receive, send)
            return
        error = PermissionDenied(
            f"pages of the origin {origin[:200]!r} may not use this gateway, which asks for no "
            "key; gateway.cors_origins names those that may",
            reason="ORIGIN_REFUSED",
            field="origin",
        )
        await answer_to(error)(scope, receive, send)
