"""Where `plinth k8s` works: a cluster, a namespace, a release, and the way to its gateway."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plinth.client import Client
    from plinth.cluster.kubernetes_ops.api import Api
    from plinth.cluster.kubernetes_ops.release import Release


def api_key() -> str:
    """The operator's key; empty where none is set."""
    return os.environ.get("PLINTH_API_KEY", "")


@dataclass(frozen=True)
class ReleaseTarget:
    """Which cluster, which release, which gateway."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None
    release: str | None = None
    url: str | None = None
    timeout_s: float = 15.0

    @contextlib.contextmanager
    def api(self) -> Iterator[Api]:
        from plinth.cluster.kubernetes_ops.api import Api

        with Api.open(
            kubeconfig=self.kubeconfig,
            context=self.context,
            namespace=self.namespace,
            timeout_s=self.timeout_s,
        ) as opened:
            yield opened

    @contextlib.contextmanager
    def found(self) -> Iterator[tuple[Api, Release]]:
        from plinth.cluster.kubernetes_ops.release import find

        with self.api() as api:
            yield api, find(api, self.release)

    def gateway(self, api: Api, release: Release) -> contextlib.AbstractContextManager[Client]:
        from plinth.cluster.kubernetes_ops.gateway_client import opened

        return opened(api, release, address=self.url, key=api_key())
