"""A gateway in a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import os
import sys

from gateway_stages import TOKEN, answering, free_port
from plinth.shared.settings import Settings


class GatewayProcess:
    """Asks for no key. After `kill` it starts again at the same ports."""

    def __init__(self, settings: Settings, environment: dict[str, str] | None = None) -> None:
        """settings: of the platform that it is a gateway of."""
        assert settings.redis_url is not None
        self.port, self.grpc_port = free_port(), free_port()
        self._process: asyncio.subprocess.Process | None = None
        self._environment = {
            **os.environ,
            **(environment or {}),
            "PLINTH_DATA_DIR": str(settings.data_dir),
            "PLINTH_REDIS_URL": settings.redis_url.get_secret_value(),
            "PLINTH_CLUSTER_TOKEN": TOKEN,
            "PLINTH_GATEWAY__AUTH": "off",
            "PLINTH_GATEWAY__PORT": str(self.port),
            "PLINTH_GATEWAY__GRPC_PORT": str(self.grpc_port),
            "PLINTH_LOG_LEVEL": "error",
        }

    @property
    def address(self) -> str:
        """Of its gRPC API."""
        return f"127.0.0.1:{self.grpc_port}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "plinth.gateway", env=self._environment
        )
        await answering(f"http://127.0.0.1:{self.port}/healthz")

    async def kill(self) -> None:
        """By SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
