"""Pages in a browser, kept from a REST API that asks nobody for a key (`gateway.auth=off`).

Such a gateway trusts whoever reaches this machine's loopback, and every page that somebody here
looks at does. Two ways are closed: a name of the page's own that it lets point to 127.0.0.1 (DNS
rebinding), by the Host header; and a request across origins that a browser sends without asking
first, such as JSON as text/plain, by Sec-Fetch-Site and Origin, as Go's net/http does
(https://pkg.go.dev/net/http#CrossOriginProtection). What is no browser sends neither of the two.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from plinth.gateway.rest.error_handlers import answer_to
from plinth.shared.errors import PermissionDenied
from plinth.shared.settings_sections import GatewaySettings

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # change nothing (RFC 9110, 9.2.1)
_QUOTED_CHARS = 100  # of a header, in a message


class CrossSiteProtection:
    """Around the application: answers 403 to a request for somebody else's host name, and to one
    across origins that may change something."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._origins = frozenset(settings.cors_origins or ())
        ours = {urlsplit(origin).hostname or "" for origin in self._origins}
        self._hosts = frozenset(map(str.lower, (settings.host, *settings.allowed_hosts, *ours)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope["method"], Headers(scope=scope))
            except PermissionDenied as error:
                await answer_to(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, method: str, headers: Headers) -> None:
        """PermissionDenied with what would be right."""
        host = headers.get("host")
        # HTTP/1.0 has none; a browser always sends it.
        if host is not None and not _names(host, self._hosts):
            raise PermissionDenied(
                f"no key is asked for here, so requests are for this machine's own names only, not "
                f"for host {host[:_QUOTED_CHARS]!r}: ask 127.0.0.1 or localhost, or add the name "
                "to gateway.allowed_hosts, or set gateway.auth=keys",
                reason="HOST_NOT_ALLOWED",
            )
        if method in _SAFE or "*" in self._origins:
            return
        origin = headers.get("origin")
        if origin in self._origins or not _crosses(headers, origin, host):
            return
        raise PermissionDenied(
            f"no key is asked for here, so pages of other origins may not ask: add "
            f"{(origin or 'its origin')[:_QUOTED_CHARS]!r} to gateway.cors_origins, or set "
            "gateway.auth=keys",
            reason="ORIGIN_NOT_ALLOWED",
        )


def _crosses(headers: Headers, origin: str | None, host: str | None) -> bool:
    """Whether a browser sends this for a page of another origin."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    # A browser that is too old to say so, or a proxy in between; a page without an origin: "null".
    return origin is not None and urlsplit(origin).netloc != host


def _names(host: str, allowed: Collection[str]) -> bool:
    """Whether a Host header is an address, which no page can make its own, loopback's or allowed;
    perhaps with a port."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
