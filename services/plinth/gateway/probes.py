"""How the platform is, for probes and Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from plinth.gateway.authentication import authenticate
from plinth.gateway.core import GatewayCore
from plinth.gateway.targets import targets

TARGETS = "/v1/metrics/targets"


def add_probes(app: FastAPI, core: GatewayCore) -> None:
    """Adds the routes."""

    @app.get("/healthz", response_model=None)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", response_model=None)
    async def readyz() -> dict[str, str]:
        await core.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", response_model=None)
    async def metrics_page() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get(TARGETS, response_model=None)
    async def scraped(request: Request) -> list[dict[str, Any]]:
        principal = await authenticate(core, request)
        if "metrics" not in principal.scopes:  # which is all that a key for Prometheus should have
            principal.require("deployments")
        host, port = request.scope["server"]
        return await targets(core.registry, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
