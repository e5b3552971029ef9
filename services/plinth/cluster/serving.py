"""What Ray Serve is asked by the head and the reconciler, in Plinth's words.

Applications are compared by the digest of their spec (`replicas.application`), so that applying
what runs already changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plinth.cluster.layout import StageSpec
from plinth.cluster.replicas import application

RETRY_FAILED_S = (5.0, 15.0, 60.0, 120.0)

_WORDS = {
    "RUNNING": "ready",
    "DEPLOY_FAILED": "failed",
    "UNHEALTHY": "restarting",
    "DELETING": "stopping",
}


@dataclass(frozen=True)
class Served:
    """One application. state: starting, ready, restarting, failed or stopping."""

    state: str
    replicas: int = 0  # that run now
    detail: str = ""
    wanted: int = 0  # that Serve wants now, by their load; 0: it has not said yet


def states() -> dict[str, Served]:
    """Each Serve application by name. Raises what Ray raises while Serve's controller is away."""
    from ray.serve.context import _get_global_client  # noqa: PLC0415
    from ray.serve.schema import ServeInstanceDetails  # noqa: PLC0415

    # As `serve.status()` does, which leaves out how many replicas are wanted.
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    found = {}
    for name, details in ServeInstanceDetails(**client.get_serve_details()).applications.items():
        parts = details.deployments.values()
        state = _WORDS.get(str(details.status.value), "starting")
        running = sum(one.state.value == "RUNNING" for part in parts for one in part.replicas)
        messages = [details.message, *(part.message for part in parts)]
        detail = " ".join(m.strip() for m in messages if m.strip()) if state != "ready" else ""
        wanted = sum(part.target_num_replicas for part in parts)
        found[name] = Served(state, running, shortened(detail), wanted)
    return found


def shortened(detail: str) -> str:
    """What Serve tells of an application, at most 600 characters: of a traceback that ends in an
    error of Plinth's, that error's message alone."""
    _, found, message = detail.rpartition("plinth.shared.errors.")
    return message.partition(": ")[2].strip()[:600] if found else detail[-600:]


class Applier:
    """Makes Serve run given specs. Keeps what it applied; safe to start with nothing known."""

    def __init__(self) -> None:
        self._applied: dict[str, tuple[str, tuple[float, ...]]] = {}
        self._failures: dict[str, tuple[int, float]] = {}  # times, when to try again

    def apply(self, specs: Iterable[StageSpec], now: Mapping[str, Served]) -> None:
        """Deploys what is missing or differs, all at once; starts failed ones over."""
        from ray import serve  # noqa: PLC0415

        changed = []
        for spec in specs:
            served = now.get(spec.name)
            key = (spec.digest(), spec.numbers())
            if served is not None and served.state == "stopping":
                continue  # deployed anew once it is gone
            if served is None or self._applied.get(spec.name) != key:
                changed.append(spec)
                self._applied[spec.name] = key
            elif served.state == "failed":
                self._start_over(spec.name)
            elif served.state == "ready":
                self._failures.pop(spec.name, None)
        if changed:
            serve.run_many(
                [
                    serve.RunTarget(application(spec), name=spec.name, route_prefix=None)
                    for spec in changed
                ],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )

    def remove(self, names: Iterable[str]) -> None:
        """Deletes applications; their replicas drain meanwhile."""
        from ray import serve  # noqa: PLC0415

        for name in names:
            self._applied.pop(name, None)
            self._failures.pop(name, None)
            serve.delete(name, _blocking=False)

    def _start_over(self, name: str) -> None:
        from ray import serve  # noqa: PLC0415

        times, due = self._failures.get(name, (0, 0.0))
        if not due:
            wait = RETRY_FAILED_S[min(times, len(RETRY_FAILED_S) - 1)]
            self._failures[name] = (times + 1, time.monotonic() + wait)
        elif time.monotonic() >= due:
            self._failures[name] = (times, 0.0)
            serve.delete(name, _blocking=False)
