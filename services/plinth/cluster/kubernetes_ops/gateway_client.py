"""The platform's own figures, which Kubernetes doesn't know: through the gateway's gRPC API.

Without an address the gateway is found in the cluster and its port forwarded, so that a kubeconfig
and an API key (scopes "deployments", "runs", "artifacts"; or "admin") are all that it takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from plinth.client import Client, Policy
from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.outcome import command, kubectl
from plinth.cluster.kubernetes_ops.release import Release, is_ready
from plinth.cluster.kubernetes_ops.sockets import forwarded
from plinth.shared.errors import FailedPrecondition, Unavailable

GRPC_PORT = 8081
PAGE = 200
POLICY = Policy(timeout_s=15.0, patience_s=5.0)
SCOPES = ("deployments", "runs", "artifacts")


@contextlib.contextmanager
def opened(api: Api, release: Release, *, address: str | None, key: str) -> Iterator[Client]:
    """A gateway for as long as the block lasts. FailedPrecondition without a key."""
    if not key:
        raise FailedPrecondition(no_key(release), reason="MISSING_API_KEY")
    with contextlib.ExitStack() as stack:
        where = address or stack.enter_context(forwarded(api, gateway_pod(api, release), GRPC_PORT))
        yield stack.enter_context(Client(where, key, policy=POLICY))


def gateway_pod(api: Api, release: Release) -> str:
    """Name of a gateway that is ready; Unavailable when none is."""
    for pod in api.items("list pods", release.of("gateway")):
        if is_ready(pod):
            return str(pod["metadata"]["name"])
    raise Unavailable(f"no gateway of {release.name} is ready; see `plinth k8s doctor`")


def in_coordinator(release: Release, *words: str) -> str:
    """A command line that runs `words` in a coordinator's pod, where the store and Redis are."""
    pods = kubectl(release.namespace, "get", "pod", "-l", release.of("coordinator"), "-o", "name")
    start = kubectl(release.namespace, "exec", "-c", "ray")
    return f"{start} $({pods} | head -n 1) -- {command(*words)}"


def no_key(release: Release) -> str:
    """What to do without an API key."""
    scopes = [word for scope in SCOPES for word in ("--scope", scope)]
    make = in_coordinator(
        release, "plinth", "keys", "create", "--local", "--label", "operator", *scopes
    )
    return f"no API key: set PLINTH_API_KEY to the one that this prints: {make}"
