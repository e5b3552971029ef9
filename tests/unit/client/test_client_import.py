"""What it takes to import the client: gRPC and messages."""

from __future__ import annotations

import json
import subprocess
import sys

# What no client's machine needs to have; and what of it is long to load.
NOT_NEEDED = (
    *("torch", "ray", "redis", "numpy", "pydantic", "structlog", "fastapi", "safetensors"),
    *("tokenizers", "typer", "rich", "kubernetes", "yaml", "prometheus_client", "cryptography"),
)
PROGRAM = """
import json, sys, time
began = time.thread_time()
from plinth.client import AsyncClient, Client
with Client("127.0.0.1:1", "") as client:
    for service in {services}:
        getattr(client, service)
print(json.dumps([time.thread_time() - began, sorted(sys.modules)]))
"""


def test_an_import_takes_little_and_brings_little() -> None:
    from plinth.client.calls import Services

    services = [name for name in vars(Services) if not name.startswith("_")]
    assert "generation" in services
    program = PROGRAM.format(services=services)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    seconds, modules = json.loads(ended.stdout)
    there = {name.partition(".")[0] for name in modules}
    assert there.isdisjoint(NOT_NEEDED)
    assert not {name for name in modules if name.startswith(("plinth.engine", "plinth.gateway"))}
    # Of the processor, since the machine may be busy; a half-second, by the wall, on an idle one.
    assert seconds < 0.5
