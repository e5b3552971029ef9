"""Pages in a browser that call the REST API from an origin of their own.

Where clients need keys a page has to bring one, so any may ask. Without keys whoever reaches the
port is admin, a page that somebody merely looks at among them: it can't read the answers then, but
what it sends as a form would be done all the same. Nor may it come under a name of its own that it
has made to mean this machine (DNS rebinding), by which the browser would take it for our page.
https://fetch.spec.whatwg.org/#http-cors-protocol, https://crypto.stanford.edu/dns/dns-rebinding.pdf
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

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
    """403 for what a page of another origin sends, and for what is sent to a name that is none of
    this machine's. Only browsers say where they come from."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins
        self._hosts = {urlsplit(origin).hostname for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None and not self._ours(host := headers.get("host", "")):
            origin = f"http://{host}"
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

    def _ours(self, host: str) -> bool:
        """Whether a Host header names this machine, which an address always does, or an origin that
        may ask. HTTP/1.0 has none."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in ("", "localhost") or name.endswith(".localhost") or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
