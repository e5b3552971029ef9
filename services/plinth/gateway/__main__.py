"""`python -m plinth.gateway`: both APIs in one event loop until SIGTERM or SIGINT.

Draining: the gRPC API says NOT_SERVING and both stop taking requests, running answers get
settings.gateway.drain_s, then what is left is cancelled.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from plinth.gateway import memory, metrics
from plinth.gateway.core import GatewayCore
from plinth.gateway.grpc_api import build_server
from plinth.gateway.rest.app import build_app
from plinth.gateway.rest.http_server import HttpServer, listen
from plinth.shared import tracing, vital_signs
from plinth.shared.errors import PlinthError
from plinth.shared.process_memory import freeze_what_lives, give_back_large_blocks
from plinth.shared.settings import Settings, load_settings
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import configure_logging, get_logger

READY_POLL_S = 1.0
_log = get_logger("plinth.gateway")


async def serve(settings: Settings, stop: asyncio.Event, *, alone: bool = False) -> None:
    """Both APIs, until `stop` is set and they have drained. alone: in a process of its own."""
    core = GatewayCore(settings)
    vital_signs.watch(settings, settings.gateway.tls.certificate)
    grpc_server = build_server(core)
    gateway = settings.gateway
    sock = listen(gateway.host, gateway.port, gateway.slow_client_s)
    rest = HttpServer(build_app(core), gateway)
    try:
        await core.open()
        grpc_port = await grpc_server.start()
        serving = asyncio.create_task(rest.serve(sockets=[sock]))
        watching = asyncio.create_task(_watch_ready(core, grpc_server.set_ready))
        renewing = asyncio.create_task(rest.keep_certificate())
        trimming = asyncio.create_task(memory.give_back())
        stopping = asyncio.create_task(stop.wait())
        port = sock.getsockname()[1]
        if alone:
            give_back_large_blocks()
            freeze_what_lives()
        _log.info("gateway is up", host=gateway.host, rest_port=port, grpc_port=grpc_port)
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("gateway drains")
        watching.cancel()
        stopping.cancel()
        renewing.cancel()
        trimming.cancel()
        rest.should_exit = True
        await asyncio.gather(serving, grpc_server.stop(gateway.drain_s))
        await cancel_and_wait(watching, stopping, renewing, trimming)
    finally:
        sock.close()
        await core.close()


async def _watch_ready(core: GatewayCore, tell: object) -> None:
    """The gRPC API's health, and what Prometheus is told, follow what /readyz says."""
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
    await serve(settings, stop, alone=True)


def main() -> None:
    """Runs until told to stop; exit status 1 with one line when it can't start."""
    try:
        settings = load_settings()
        configure_logging(settings, "gateway")
        tracing.start(settings, "gateway", public=True)
        asyncio.run(_run(settings))
        tracing.stop()
    except PlinthError as error:
        sys.exit(f"plinth gateway: {error.message}")


if __name__ == "__main__":
    main()
