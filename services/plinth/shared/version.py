"""Which code this is: what artifacts record, replicas announce and Prometheus is told."""

from __future__ import annotations

from importlib.metadata import version

DISTRIBUTION = "plinth-llm"
VERSION = version(DISTRIBUTION)
CODE_VERSION = f"{DISTRIBUTION} {VERSION}"
