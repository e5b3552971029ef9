"""The REST API: OpenAI's endpoints, preferences, health and metrics on FastAPI."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from plinth.gateway.core import GatewayCore
from plinth.gateway.openai.routes import add_openai_routes
from plinth.gateway.preferences.routes import add_preferences
from plinth.gateway.rest.authentication import authenticate
from plinth.gateway.rest.cross_site import CrossSiteProtection
from plinth.gateway.rest.error_handlers import add_error_handlers
from plinth.gateway.rest.middleware import RequestMiddleware
from plinth.gateway.rest.probes import add_probes
from plinth.shared.settings_sections import GatewaySettings

_PREFLIGHT_S = 3600  # for which a browser need not ask again


def build_app(core: GatewayCore) -> ASGIApp:
    """The application over `core`, which whoever runs it opens and closes."""
    app = FastAPI(
        title="Plinth",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # by the client's own Host, and to http behind TLS
    )
    add_error_handlers(app)
    add_openai_routes(app, core)
    add_preferences(app, core, lambda request: authenticate(core, request))
    add_probes(app, core)
    # Around Starlette's own handler of crashes, so that those are counted, and read by browsers.
    gateway = core.settings.gateway
    inner = _for_browsers(app, gateway)
    if gateway.auth == "off":
        inner = CrossSiteProtection(inner, gateway)
    return RequestMiddleware(inner)


def _for_browsers(app: ASGIApp, settings: GatewaySettings) -> ASGIApp:
    """CORS for the origins of `settings`. Without credentials in the standard's sense: a page has
    to bring a key of its own, and no cookie is ever read."""
    origins = settings.cors_origins
    if origins is None:
        origins = () if settings.auth == "off" else ("*",)
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
