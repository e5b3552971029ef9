"""How the platform is, for probes and Prometheus."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from plinth.gateway.core import GatewayCore
from plinth.gateway.rest.authentication import authenticate
from plinth.gateway.rest.targets import targets

TARGETS = "/v1/metrics/targets"
# What others call the same: vLLM and its clients, SageMaker.
ALIASES = {"/health": "/readyz", "/ping": "/readyz"}
_PROBE = ["GET", "HEAD"]


def add_probes(app: FastAPI, core: GatewayCore) -> None:
    """Adds the routes."""

    scraping = asyncio.Lock()

    @app.api_route("/healthz", methods=_PROBE, response_model=None)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.api_route("/readyz", methods=_PROBE, response_model=None)
    @app.api_route("/health", methods=_PROBE, response_model=None)
    @app.api_route("/ping", methods=_PROBE, response_model=None)
    async def readyz() -> dict[str, str]:
        await core.check_ready()
        return {"status": "ready"}

    @app.api_route("/metrics", methods=_PROBE, response_model=None)
    async def metrics_page() -> Response:
        # Collectors look at files, which a slow disk makes wait for; one thread at a time, since
        # nobody needs a key for this.
        async with scraping:
            page = await asyncio.to_thread(generate_latest)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    @app.get(TARGETS, response_model=None)
    async def scraped(request: Request) -> list[dict[str, Any]]:
        principal = await authenticate(core, request)
        if "metrics" not in principal.scopes:  # which is all that a key for Prometheus should have
            principal.require("deployments")
        host, port = request.scope["server"]
        own = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return await targets(core.registry, own, https=core.settings.gateway.tls.on)
