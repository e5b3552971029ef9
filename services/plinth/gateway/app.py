"""The REST API: OpenAI's endpoints, preferences, health and metrics on FastAPI."""

from __future__ import annotations

from fastapi import FastAPI

from plinth.gateway.authentication import authenticate
from plinth.gateway.core import GatewayCore
from plinth.gateway.error_handlers import add_error_handlers
from plinth.gateway.middleware import RequestMiddleware
from plinth.gateway.openai_routes import add_openai_routes
from plinth.gateway.preferences_api import add_preferences
from plinth.gateway.probes import add_probes


def build_app(core: GatewayCore) -> FastAPI:
    """The application over `core`, which whoever runs it opens and closes."""
    app = FastAPI(title="Plinth", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestMiddleware)
    add_error_handlers(app)
    add_openai_routes(app, core)
    add_preferences(app, core, lambda request: authenticate(core, request))
    add_probes(app, core)
    return app
