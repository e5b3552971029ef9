"""`python -m plinth.gateway`: both doors in one event loop until SIGTERM or SIGINT.

Draining: the gRPC door says NOT_SERVING and both stop taking requests, running answers get
settings.gateway.drain_s, then what is left is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from plinth.gateway import metrics
from plinth.gateway.app import build_app
from plinth.gateway.core import GatewayCore
from plinth.gateway.grpc_api import build_server
from plinth.gateway.slow_clients import FAREWELL_S, SlowClients
from plinth.shared import tracing, vital_signs
from plinth.shared.errors import FailedPrecondition, PlinthError
from plinth.shared.settings import Settings, load_settings
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import configure_logging, get_logger

READY_POLL_S = 1.0
SEND_BUFFER_BYTES = 256 << 10  # of a connection: at 100 ms from its client, 5 MB/s
_log = get_logger("plinth.gateway")


class _Rest(uvicorn.Server):
    """Leaves signals to `serve`, which drains both doors."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int, slow_client_s: float) -> socket.socket:
    """A bound socket; FailedPrecondition that names the setting when the port is taken.

    slow_client_s: how long what was sent may wait for a client to take it, also where nobody
    waits any more: behind an answer's end, and on a connection that is being closed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Left alone, the kernel takes megabytes for a client that doesn't read.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have it from their listener
        waits_ms = int((slow_client_s + FAREWELL_S) * 2000)  # who waits has the first word
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, waits_ms)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise FailedPrecondition(
            f"the gateway can't listen on {host}:{port}: {error.strerror}; choose another with "
            "PLINTH_GATEWAY__PORT, or 0 for any free one",
            reason="PORT_IN_USE",
            field="gateway.port",
        ) from error
    return sock


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Both doors, until `stop` is set and they have drained."""
    core = GatewayCore(settings)
    vital_signs.watch(settings)
    grpc_door = build_server(core)
    gateway = settings.gateway
    sock = listen(gateway.host, gateway.port, gateway.slow_client_s)
    rest = _Rest(
        uvicorn.Config(
            SlowClients(build_app(core), gateway.slow_client_s),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(gateway.drain_s)),
            server_header=False,
        )
    )
    try:
        await core.open()
        grpc_port = await grpc_door.start()
        serving = asyncio.create_task(rest.serve(sockets=[sock]))
        watching = asyncio.create_task(_watch_ready(core, grpc_door.set_ready))
        stopping = asyncio.create_task(stop.wait())
        port = sock.getsockname()[1]
        _log.info("gateway is up", host=gateway.host, rest_port=port, grpc_port=grpc_port)
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("gateway drains")
        watching.cancel()
        stopping.cancel()
        rest.should_exit = True
        await asyncio.gather(serving, grpc_door.stop(gateway.drain_s))
        await cancel_and_wait(watching, stopping)
    finally:
        sock.close()
        await core.close()


async def _watch_ready(core: GatewayCore, tell: object) -> None:
    """The gRPC door's health, and what Prometheus is told, follow what /readyz says."""
    assert callable(tell)
    while True:
        try:
            await core.check_ready()
        except PlinthError:
            await tell(False)
            metrics.READY.set(0)
        else:
            await tell(True)
            metrics.READY.set(1)
        vital_signs.REDIS_REACHABLE.labels("gateway").set(await core.redis_answers())
        await asyncio.sleep(READY_POLL_S)


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


def main() -> None:
    """Runs until told to stop; exit status 1 with one line when it can't start."""
    try:
        settings = load_settings()
        configure_logging(settings, "gateway")
        tracing.start(settings, "gateway", door=True)
        asyncio.run(_run(settings))
        tracing.stop()
    except PlinthError as error:
        sys.exit(f"plinth gateway: {error.message}")


if __name__ == "__main__":
    main()
