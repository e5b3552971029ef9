"""What every long-lived process tells Prometheus of its own condition.

Series appear when there is something to tell: one that was there from the start would say that a
stage which still loads its model is ill.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

from plinth.shared.errors import PlinthError
from plinth.shared.rpc import tls
from plinth.shared.settings import Settings
from plinth.shared.telemetry import gauge
from plinth.shared.version import VERSION

HEALTHY = gauge("stage_healthy", "1 while the stage calls itself well, 0 while not.", ["stage"])
REDIS_REACHABLE = gauge(
    "redis_reachable", "1 while Redis takes this process's word, 0 while it does not.", ["stage"]
)
_BUILD = gauge("build_info", "1: the version of Plinth that this process runs.", ["version"])
_CERTIFICATE = gauge(
    "tls_certificate_expiry_timestamp_seconds",
    "When the certificate on the disk expires, in Unix time; 0 for one that can't be read.",
    ["certificate"],
)
_STORE_SIZE = gauge("store_size_bytes", "Size of the disk of a store on files.", ["store"])
_STORE_FREE = gauge(
    "store_free_bytes", "What of the disk of a store on files is free for Plinth.", ["store"]
)


def watch(settings: Settings, *certificates: Path | None) -> None:
    """From now on each scrape looks at the stages' certificate, at `certificates`, and at the disk
    of the store, where there are any."""
    _BUILD.labels(VERSION).set(1)
    for certificate in (settings.tls.certificate, *certificates):
        if certificate is not None:
            _CERTIFICATE.labels(str(certificate)).set_function(partial(_expiry, certificate))
    store = settings.store()
    if store.startswith("file://"):
        folder = Path(store.removeprefix("file://"))
        _STORE_SIZE.labels(store).set_function(lambda: _disk(folder)[0])
        _STORE_FREE.labels(store).set_function(lambda: _disk(folder)[1])


def _expiry(certificate: Path) -> float:
    try:
        return tls.expiry_unix_s(certificate)
    except PlinthError:
        return 0.0


def _disk(folder: Path) -> tuple[float, float]:
    """(size, free) in bytes; NaN where there is no such folder (yet)."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return math.nan, math.nan
    return found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
