"""A relay to Redis that can lose what Redis answers: commands were applied, and nobody knows."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

from plinth.shared.tasks import cancel_and_wait


class CuttingRelay:
    """Before an embedded server, whose socket it takes the place of in `url`."""

    def __init__(self, redis_url: str) -> None:
        self._parts = urlsplit(redis_url)
        assert self._parts.scheme == "unix"
        self._serving: set[asyncio.Task[None]] = set()
        self.lose = 0  # how many connections are cut at a script's answer, next
        self.lost = 0
        self.url = ""

    async def __aenter__(self) -> CuttingRelay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://:{self._parts.password}@127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await cancel_and_wait(*self._serving)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Cuts every connection there is."""
        for task in self._serving:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            there, back = await asyncio.open_unix_connection(self._parts.path)
            try:
                async with asyncio.TaskGroup() as both:
                    applied = asyncio.Event()
                    both.create_task(self._forward(reader, back, applied))
                    both.create_task(self._answer(there, writer, applied))
            finally:
                back.close()
        except* (OSError, _Cut):
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            writer.close()
            self._serving.discard(task)

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, applied: asyncio.Event
    ) -> None:
        while data := await source.read(1 << 16):
            if b"EVALSHA" in data:
                applied.set()
            sink.write(data)
            with suppress(ConnectionError):
                await sink.drain()
        raise _Cut

    async def _answer(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, applied: asyncio.Event
    ) -> None:
        while data := await source.read(1 << 16):
            if self.lose and applied.is_set():
                self.lose -= 1
                self.lost += 1
                raise _Cut
            sink.write(data)
            await sink.drain()
        raise _Cut


class _Cut(Exception):
    """This connection is over."""
