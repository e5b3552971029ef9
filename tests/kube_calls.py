"""What the scripted API server is asked and answers, and how it listens on loopback."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from kube_objects import Json


@dataclass
class Reply:
    """A scripted answer. status 0: none ever comes."""

    status: int
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    details: Json = field(default_factory=dict)


@dataclass
class Call:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    body: Any = None
    agent: str = ""

    @property
    def manager(self) -> str:
        """As whom it writes fields."""
        return self.query.get("fieldManager") or self.agent.partition("/")[0]


def refused(
    code: int,
    message: str,
    headers: dict[str, str] | None = None,
    details: Json | None = None,
    reason: str = "",
) -> Response:
    """A Status, as every refusal is one."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}}
    body |= {"code": code, "message": message, "reason": reason, "details": details or {}}
    return JSONResponse(body, code, headers)


class Loopback:
    """A server of HTTP and of websockets in a thread of its own."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._server: uvicorn.Server | None = None

    async def _http(self, request: Request) -> Response:
        raise NotImplementedError

    async def _socket(self, socket: WebSocket) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        routes = [
            WebSocketRoute("/{path:path}", self._socket),
            Route("/{path:path}", self._http, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            host="127.0.0.1",
            port=0,
            log_level="error",
            ws="websockets-sansio",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        started = threading.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            assert self._server is not None
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started and not serving.done():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            started.set()
            await serving

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        assert started.wait(10)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(10)
