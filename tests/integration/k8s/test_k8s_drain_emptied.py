"""`plinth k8s drain`: when a pod counts as empty, and who said so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kube_api import KubeApi
from kube_cluster import error_of, plinth_k8s
from kube_gateway import ScriptedGateway, shard, status
from kube_objects import Json
from kube_release import CORE, pod, pod_address
from plinth.cluster.kubernetes_ops import draining
from plinth.v1 import operations_pb2

POD = f"{CORE}/pods/plinth-inference-0"


pytestmark = pytest.mark.usefixtures("released")


def runs_again(kube: KubeApi) -> None:
    """What the kubelet tells of a container that has ended and was started again."""
    found = kube.objects[POD]
    found["status"]["containerStatuses"][0]["restartCount"] += 1
    kube.put(POD, found)


@pytest.mark.parametrize("how", [runs_again, lambda kube: kube.delete(POD)], ids=["again", "gone"])
def test_the_container_may_end_before_its_command(
    kube: KubeApi, kubeconfig: Path, how: Callable[[KubeApi], None]
) -> None:
    kube.exec_code = lambda name, command: how(kube)
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", key="")
    assert result.exit_code == 0, result.output
    assert "its drain ended without an exit code (the connection" in result.stdout
    assert POD not in kube.objects


# As an API server says it: of a container that can't be entered, and of a runtime that fails.
NEVER_BEGUN = 'container not found ("ray")'
FAILED: dict[str, Json] = {
    "no cause": {"status": "Failure", "message": NEVER_BEGUN, "code": 404},
    "another cause": {
        "status": "Failure",
        "reason": "InternalError",
        "message": f"error executing command in container: {NEVER_BEGUN}",
        "details": {"causes": [{"message": NEVER_BEGUN}]},
        "code": 500,
    },
    "a signal": {
        "status": "Failure",
        "message": f"command terminated: {NEVER_BEGUN}",
        "details": {"causes": [{"reason": "ExitCode", "message": "killed"}]},
    },
}


@pytest.mark.parametrize("how", [*FAILED, "no word"])
def test_a_command_without_an_exit_code_has_emptied_nothing(
    kube: KubeApi, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Ray was never asked: the container runs on, so its streams do."""
    monkeypatch.setattr(draining, "_KUBELET_S", 0.0)
    kube.exec_code = lambda name, command: FAILED.get(how)
    said = error_of(plinth_k8s(kubeconfig, "drain", "plinth-inference-0", key=""))
    assert (NEVER_BEGUN if how in FAILED else "closed without a word of its end") in said
    assert "whether it is empty is unknown; nothing was evicted" in said
    assert not kube.made("POST", "/eviction$")
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", "--force", key="")
    assert result.exit_code == 0, result.output
    assert "its drain ended without an exit code" in result.stdout
    assert POD not in kube.objects


def test_replicas_that_redis_could_not_tell_are_not_none(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    gateway.status = operations_pb2.GetStatusResponse(redis_error="Redis is away")
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", url=gateway.address)
    assert result.exit_code == 0, result.output
    assert "the platform's figures can't be had (Redis is away)" in result.stdout
    assert kube.executed  # by Ray's word, which was asked for


@pytest.mark.parametrize("figures", ["none", "without Redis"])
def test_one_that_is_not_ready_is_asked_too(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway, figures: str
) -> None:
    """Nobody says what it holds: Ray must."""
    kube.put(POD, pod("inference", pod_address(kube, POD), ready=False))
    gateway.status = operations_pb2.GetStatusResponse(
        redis_error="Redis is away", replicas=[shard(pod_address(kube, POD), running=3)]
    )
    how = {"key": ""} if figures == "none" else {"url": gateway.address}
    kube.exec_code = lambda name, command: 1
    said = error_of(plinth_k8s(kubeconfig, "drain", "plinth-inference-0", **how))
    assert "is not empty after 300 s, or Ray could not drain it; nothing was evicted" in said
    assert [name for name, _ in kube.executed] == ["plinth-inference-0"]
    assert POD in kube.objects
    kube.exec_code = lambda name, command: 0
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", **how)
    assert result.exit_code == 0, result.output
    assert POD not in kube.objects


STATES: dict[str, tuple[Json, bool]] = {
    "waits": ({"containerStatuses": [{"name": "ray", "state": {"waiting": {}}}]}, False),
    "ended": ({"containerStatuses": [{"name": "ray", "state": {"terminated": {}}}]}, False),
    "nowhere": ({"phase": "Pending"}, False),
    "untold": ({"phase": "Unknown"}, True),
}


@pytest.mark.parametrize("state", STATES)
def test_only_a_container_that_does_not_run_holds_nothing(
    kube: KubeApi, kubeconfig: Path, state: str
) -> None:
    told, asked = STATES[state]
    found = pod("inference", pod_address(kube, POD), ready=False)
    found["status"] = told
    kube.put(POD, found)
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", key="")
    assert result.exit_code == 0, result.output
    assert bool(kube.executed) == asked
    assert ("its container does not run" in result.stdout) == (not asked)


def test_one_that_was_marked_before_is_waited_for(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    """It is no longer ready, and holds a stream still. Ray is told once more, and takes it."""
    kube.put(POD, pod("inference", pod_address(kube, POD), ready=False))
    gateway.status = status(shard(pod_address(kube, POD), running=1))
    result = plinth_k8s(
        kubeconfig, "drain", "plinth-inference-0", "--timeout", "1", url=gateway.address
    )
    assert "still holds 1 streams after 1 s; nothing was evicted" in error_of(result)
    assert POD in kube.objects
