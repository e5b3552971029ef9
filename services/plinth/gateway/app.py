"""The REST API: OpenAI's endpoints, preferences, health and metrics on FastAPI."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp

from plinth.gateway.authentication import authenticate
from plinth.gateway.browsers import for_browsers
from plinth.gateway.core import GatewayCore
from plinth.gateway.error_handlers import add_error_handlers
from plinth.gateway.middleware import RequestMiddleware
from plinth.gateway.openai_routes import add_openai_routes
from plinth.gateway.preferences_api import add_preferences
from plinth.gateway.probes import add_probes


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
    return RequestMiddleware(for_browsers(app, core.settings.gateway))
