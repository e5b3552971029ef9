"""`plinth k8s drain`: empties a pod, or a node, without a lost stream.

1. The node is cordoned (a node only).
2. A pod with replicas is marked: Ray is told that its node drains, by the same command as its
   preStop hook runs. Serve starts successors where there is room; streams end, or go on at another
   shard. One that is not ready is marked too: it may hold streams still, and Ray takes being told
   twice. Only a container that does not run holds nothing, and can't be asked.
3. That command returns 0 when the replica is gone; where nobody told its exit code, its container
   must have ended. And where the platform's figures are at hand, they must agree that no stream is
   left.
4. The pod is evicted, so disruption budgets hold (429: again when the server says so), and this
   waits until it is gone.

A pod that isn't empty in time is not evicted, unless forced.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from plinth.cluster.kubernetes_ops import watching
from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.cluster.kubernetes_ops.calls import CALLS
from plinth.cluster.kubernetes_ops.outcome import CommandOutcome, kubectl
from plinth.cluster.kubernetes_ops.release import (
    PART_OF,
    Release,
    component_of,
    container_of,
)
from plinth.cluster.kubernetes_ops.sockets import CommandEnd, run
from plinth.shared.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.v1 import operations_pb2

# What loses least goes first; Redis last, since all else talks to it.
_LAST = ("gateway", "head", "redis")
_LOOK_S = 1.0
_BUDGET_S = 5.0  # between evictions that a budget refuses, where the server names no time
_EXEC_SLACK_S = 10.0
_KUBELET_S = 10.0  # until a kubelet has told that a container ended
Figures = Callable[[], operations_pb2.GetStatusResponse]


@dataclass(frozen=True)
class Drain:
    """How to drain. timeout_s: for each of emptying, eviction and end. figures: the platform's, or
    None where they can't be had. say: a line of progress."""

    timeout_s: float = 300.0
    force: bool = False
    figures: Figures | None = None
    say: Callable[[str], object] = field(default=lambda line: None)


def drain_node(api: Api, release: Release, node: str, how: Drain) -> CommandOutcome:
    """Cordons the node and drains the release's pods on it, one after another. NotFound."""
    api.call("cordon", name=node, body={"spec": {"unschedulable": True}})
    how.say(f"{node} is cordoned")
    listing = api.listing("list pods", release.selector, fieldSelector=f"spec.nodeName={node}")
    pods = [pod for pod in listing["items"] if "deletionTimestamp" not in pod["metadata"]]
    pods.sort(key=lambda pod: (_rank(component_of(pod)), pod["metadata"]["name"]))
    outcome = CommandOutcome(equivalents=[f"kubectl cordon {node}"])
    for pod in pods:
        one = _drained(api, pod, how)
        outcome.notes += one.notes
        outcome.equivalents += one.equivalents
    outcome.notes.append(
        f"{node} holds nothing of {release.name} any more; `kubectl uncordon {node}` gives it back"
    )
    return outcome


def drain_pod(api: Api, release: Release, name: str, how: Drain) -> CommandOutcome:
    """Drains one pod of the release. NotFound; InvalidArgument if it is somebody else's."""
    pod = api.call("get pod", name=name)
    labels = pod["metadata"].get("labels", {})
    if any(labels.get(key) != value for key, _, value in (p.partition("=") for p in _of(release))):
        raise InvalidArgument(
            f"{name} is no pod of the release {release.name}; its pods: "
            f"{kubectl(release.namespace, 'get', 'pods', '-l', release.selector)}",
            field="pod",
        )
    return _drained(api, pod, how)


def _of(release: Release) -> list[str]:
    selector = release.selector.split(",")
    assert PART_OF in selector
    return selector


def _rank(component: str) -> int:
    return 1 + _LAST.index(component) if component in _LAST else 0


def _drained(api: Api, pod: Json, how: Drain) -> CommandOutcome:
    name, component = pod["metadata"]["name"], component_of(pod)
    outcome = CommandOutcome()
    has_replica = container_of(component) == "ray" and component != "head"
    if has_replica:
        if _runs(pod):
            outcome.equivalents.append(_mark(api, pod, how))
        else:
            how.say(f"{name}: its container does not run, so it holds nothing")
        _until_silent(api, pod, how)
    _evict(api, name, how)
    eviction = f"{CALLS['evict'].path.format(namespace=api.namespace, name=name)}"
    outcome.equivalents.append(
        f"echo '{json.dumps(_eviction(api, name))}' | kubectl create --raw {eviction} -f -"
    )
    _until_gone(api, pod, how)
    outcome.notes.append(f"{name} is empty and gone")
    return outcome


def _runs(pod: Json) -> bool:
    """Whether the container `ray` may run: where nobody tells of it, it may, unless its pod is not
    yet anywhere."""
    own = _status_of(pod)
    if not own:
        return bool(pod.get("status", {}).get("phase") != "Pending")
    return not {"waiting", "terminated"} & set(own.get("state") or {})


def _mark(api: Api, pod: Json, how: Drain) -> str:
    """Ray empties the pod. Returns the command that did it."""
    name = pod["metadata"]["name"]
    command = ["python", "-m", "plinth.cluster.node_drain", "--timeout", f"{how.timeout_s:.0f}"]
    how.say(f"{name}: Ray drains it")
    timeout_s = how.timeout_s + _EXEC_SLACK_S
    ended = run(api, name, "ray", command, timeout_s=timeout_s, say=lambda text: None)
    if not _emptied(api, pod, ended) and not how.force:
        raise FailedPrecondition(_not_empty(pod, ended, how), reason="NOT_EMPTY")
    how.say(f"{name}: {'its replica has ended' if ended.code == 0 else _told(ended)}")
    return kubectl(api.namespace, "exec", "-c", "ray", name, "--", *command)


def _emptied(api: Api, pod: Json, ended: CommandEnd) -> bool:
    """Whether nothing of the replica is left. Without an exit code only by its container's end: it
    may end before the command that waits for it does."""
    if ended.code is not None:
        return ended.code == 0
    name, before = pod["metadata"]["name"], _incarnation(pod)
    end = time.monotonic() + _KUBELET_S
    while True:
        try:
            now = _incarnation(api.call("get pod", name=name))
        except NotFound:
            return True
        if now != before:
            return True
        if time.monotonic() > end:
            return False
        api.stopped.wait(_LOOK_S)


def _incarnation(pod: Json) -> tuple[object, ...]:
    """Which run of the container `ray` this is, and whether it has ended."""
    own = _status_of(pod)
    ended = "terminated" in (own.get("state") or {})
    return pod["metadata"]["uid"], own.get("containerID"), own.get("restartCount"), ended


def _status_of(pod: Json) -> Json:
    """What the kubelet tells of the container `ray`; empty: nothing."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((one for one in statuses if one["name"] == "ray"), {})


def _not_empty(pod: Json, ended: CommandEnd, how: Drain) -> str:
    name = pod["metadata"]["name"]
    why = f"{name} is not empty after {how.timeout_s:.0f} s, or Ray could not drain it"
    if ended.code is None:
        why = (
            f"{name}: {_told(ended)}, and its container runs on, so whether it is empty is unknown"
        )
    return (
        f"{why}; nothing was evicted. Is there room for its replica elsewhere (`plinth k8s "
        "status`)? Then drain it again; --force evicts it all the same: streams then go on at "
        f"another shard, if there is one. `plinth k8s logs {component_of(pod)}` says more"
    )


def _told(ended: CommandEnd) -> str:
    if ended.code is None:
        return f"its drain ended without an exit code ({ended.why})"
    return f"its drain ended with exit code {ended.code}"


def _until_silent(api: Api, pod: Json, how: Drain) -> None:
    """The platform agrees: nobody announces requests at the pod's address."""
    address = pod.get("status", {}).get("podIP", "")
    if how.figures is None or how.force or not address:
        return
    end = time.monotonic() + how.timeout_s
    while True:
        try:
            figures = how.figures()
            if figures.redis_error:  # replicas announce themselves there: none told is not none
                raise Unavailable(figures.redis_error)
            left = _streams(figures, address)
        except PlinthError as error:  # the gateway may be what moves; Ray's word stands
            how.say(f"the platform's figures can't be had ({error.message})")
            return
        if not left:
            return
        if time.monotonic() > end:
            raise DeadlineExceeded(
                f"{pod['metadata']['name']} still holds {left} streams after {how.timeout_s:.0f} s;"
                " nothing was evicted. --force evicts it all the same",
                reason="NOT_EMPTY",
            )
        api.stopped.wait(_LOOK_S)


def _streams(status: operations_pb2.GetStatusResponse, address: str) -> int:
    return sum(
        replica.running + replica.waiting
        for replica in status.replicas
        if replica.address.rpartition(":")[0].strip("[]") == address
    )


def _eviction(api: Api, name: str) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": api.namespace},
    }


def _evict(api: Api, name: str, how: Drain) -> None:
    """Asks until a disruption budget allows it."""
    end = time.monotonic() + how.timeout_s
    told = ""
    while True:
        try:
            api.call("evict", name=name, body=_eviction(api, name), patient=False)
        except NotFound:
            return
        except ResourceExhausted as error:
            why = error.metadata.get("causes") or error.message
            wait = error.retry_after_s or _BUDGET_S
            if time.monotonic() + wait > end:
                raise DeadlineExceeded(
                    f"{name} is empty and was not evicted: for {how.timeout_s:.0f} s its "
                    f"disruption budget did not allow it ({why}). A pod of the stage that is not "
                    "ready holds the budget: see `plinth k8s status`",
                    reason="DISRUPTION_BUDGET",
                ) from error
            if why != told:
                how.say(f"{name}: waits for its disruption budget ({why})")
            told = why
            api.stopped.wait(wait)
        else:
            how.say(f"{name}: evicted")
            return


def _until_gone(api: Api, pod: Json, how: Drain) -> None:
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    grace = float(pod["spec"].get("terminationGracePeriodSeconds") or 30)
    timeout_s = how.timeout_s + grace
    for pods in watching.pods(api, ",".join(_labels(pod)), timeout_s):
        there = pods.get(name)
        # A StatefulSet's next pod has the same name.
        if there is None or there["metadata"]["uid"] != uid:
            return
    raise DeadlineExceeded(f"{name} was evicted and is still there after {timeout_s:.0f} s")


def _labels(pod: Json) -> list[str]:
    labels = pod["metadata"]["labels"]
    return [
        f"{key}={labels[key]}"
        for key in sorted(labels)
        if key.startswith("app.kubernetes.io/")
        and key.rpartition("/")[2] in {"part-of", "instance", "component"}
    ]
