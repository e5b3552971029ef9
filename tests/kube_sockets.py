"""Websockets into pods, as an API server speaks them (v4.channel.k8s.io)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from kube_objects import Json


async def execute(
    socket: WebSocket,
    pod: str,
    executed: list[tuple[str, list[str]]],
    code_of: Callable[[str, list[str]], int | Json | None],
) -> None:
    """One command: noted, and ended with the code that `code_of` gives, with the Status that it
    gives (as of a runtime that fails), or without a word."""
    command = socket.query_params.getlist("command")
    executed.append((pod, command))
    code = await asyncio.to_thread(code_of, pod, command)
    await socket.send_bytes(b"\x01draining\n")
    if code is not None:
        ended: Json = {"status": "Success"}
        if isinstance(code, dict):
            ended = code
        elif code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            ended = {"status": "Failure", "details": {"causes": causes}}
        await socket.send_bytes(b"\x03" + json.dumps(ended).encode())
    await socket.close()


async def forward(socket: WebSocket, to: int) -> None:
    """Bytes between the websocket and a port of this machine, in channels as the API server's."""
    port = int(socket.query_params["ports"])
    number = port.to_bytes(2, "little")
    await socket.send_bytes(b"\x00" + number)
    await socket.send_bytes(b"\x01" + number)
    reader, writer = await asyncio.open_connection("127.0.0.1", to)

    async def out() -> None:
        while data := await reader.read(1 << 16):
            await socket.send_bytes(b"\x00" + data)

    sending = asyncio.create_task(out())
    try:
        while True:
            writer.write((await socket.receive_bytes())[1:])
            await writer.drain()
    except (WebSocketDisconnect, ConnectionError):
        pass
    finally:
        sending.cancel()
        writer.close()
