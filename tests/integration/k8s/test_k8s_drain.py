"""`plinth k8s drain`: mark, wait until no stream is left, evict as budgets allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from kube_api import KubeApi
from kube_calls import Call, Reply
from kube_cluster import error_of, plinth_k8s
from kube_gateway import ScriptedGateway, shard, status
from kube_release import CORE, labels, pod, pod_address
from plinth.cluster.kubernetes_ops import draining

POD = f"{CORE}/pods/plinth-inference-0"
pytestmark = pytest.mark.usefixtures("released")
BUDGET = {
    "causes": [
        {
            "reason": "DisruptionBudget",
            "message": "The disruption budget plinth-inference needs 1 healthy pods and has 1",
        }
    ]
}


def test_a_shard_is_marked_emptied_and_evicted_in_that_order(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    own, other = pod_address(kube, POD), "10.0.2.1"
    gateway.statuses = [
        status(shard(own, running=2), shard(other, running=5)),
        status(shard(own, running=1)),
    ]
    gateway.status = status(shard(other, running=6))
    asked: list[int] = []

    def drains(name: str, command: list[str]) -> int:
        assert not kube.made("POST", "eviction")
        asked.append(len(gateway.calls))
        return 0

    kube.exec_code = drains
    kube.on_evict = lambda path: (asked.append(len(gateway.calls)), kube.delete(path))
    result = plinth_k8s(
        kubeconfig, "drain", "plinth-inference-0", "--timeout", "20", url=gateway.address
    )
    assert result.exit_code == 0, result.output
    marked = ["python", "-m", "plinth.cluster.node_drain", "--timeout", "20"]
    assert kube.executed == [("plinth-inference-0", marked)]
    (call,) = kube.made("GET", "/exec$")
    assert call.query["container"] == "ray"
    assert asked == [0, 3]  # marked first; evicted when the third look saw no stream
    (eviction,) = kube.made("POST", "/pods/plinth-inference-0/eviction$")
    assert (eviction.body["apiVersion"], eviction.body["kind"]) == ("policy/v1", "Eviction")
    assert POD not in kube.objects
    assert "plinth-inference-0 is empty and gone" in result.stdout
    assert "exec -c ray plinth-inference-0 -- python -m plinth.cluster.node_drain" in result.stderr
    assert "kubectl create --raw" in result.stderr


def test_a_budget_is_waited_for(
    kube: KubeApi, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "_BUDGET_S", 0.01)  # the server names no time
    refusal = Reply(429, "Cannot evict pod", {"Retry-After": "0"}, BUDGET)
    kube.script("POST", "/eviction$", refusal, refusal)
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", key="")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("waits for its disruption budget (The disruption budget") == 1
    assert len(kube.made("POST", "/eviction$")) == 3


def test_a_budget_that_never_allows_it(kube: KubeApi, kubeconfig: Path) -> None:
    kube.script("POST", "/eviction$", Reply(429, "no", {"Retry-After": "10"}, BUDGET))
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", "--timeout", "1", key="")
    said = error_of(result)
    assert "is empty and was not evicted" in said
    assert "needs 1 healthy pods and has 1" in said
    assert POD in kube.objects


def test_one_that_does_not_empty_is_not_evicted(kube: KubeApi, kubeconfig: Path) -> None:
    kube.exec_code = lambda name, command: 1
    said = error_of(plinth_k8s(kubeconfig, "drain", "plinth-inference-0", key=""))
    assert "is not empty after 300 s" in said
    assert "nothing was evicted" in said
    assert not kube.made("POST", "/eviction$")
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", "--force", key="")
    assert result.exit_code == 0, result.output
    assert POD not in kube.objects


def test_streams_that_stay_keep_it(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    gateway.status = status(shard(pod_address(kube, POD), running=1))
    result = plinth_k8s(
        kubeconfig, "drain", "plinth-inference-0", "--timeout", "1", url=gateway.address
    )
    assert "still holds 1 streams after 1 s; nothing was evicted" in error_of(result)
    assert POD in kube.objects


@pytest.mark.parametrize("by", ["status", "event"])
def test_a_watch_that_is_too_old_is_listed_anew(kube: KubeApi, kubeconfig: Path, by: str) -> None:
    """410: the end of the pod is in no watch any more, only in the next list."""

    class Calls(list):  # type: ignore[type-arg]
        lists = 0

        def append(self, call: Call) -> None:
            super().append(call)
            if POD not in kube.objects or not kube.made("POST", "/eviction$"):
                return
            if call.path == f"{CORE}/pods" and "watch" not in call.query:
                self.lists += 1
                if self.lists == 2:
                    kube.delete(POD)
            elif by == "event" and "watch" in call.query:
                kube.put(f"{CORE}/pods/other", pod("reward", "10.7.7.7"))
                kube.forget()

    calls = Calls()
    kube.calls = calls
    kube.on_evict = lambda path: None
    if by == "status":
        kube.script("WATCH", "/pods$", Reply(410, "too old resource version"))
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", key="")
    assert result.exit_code == 0, result.output
    assert calls.lists == 2


def test_a_statefulsets_next_pod_is_another_one(kube: KubeApi, kubeconfig: Path) -> None:
    def evicted(path: str) -> None:
        kube.delete(path)
        kube.put(path, pod("inference", "10.0.9.9"))

    kube.on_evict = evicted
    result = plinth_k8s(kubeconfig, "drain", "plinth-inference-0", key="")
    assert result.exit_code == 0, result.output


def test_a_node_is_cordoned_and_its_stages_go_before_what_they_need(
    kube: KubeApi, kubeconfig: Path
) -> None:
    kube.put("/api/v1/nodes/node-1", {"kind": "Node", "spec": {}})
    kube.put(f"{CORE}/pods/stranger", {"kind": "Pod", "metadata": {"labels": {}}, "spec": {}})
    order: list[str] = []

    def evicted(path: str) -> None:
        order.append(path.rpartition("/")[2])
        kube.delete(path)

    kube.on_evict = evicted
    result = plinth_k8s(kubeconfig, "drain", "node/node-1", key="")
    assert result.exit_code == 0, result.output
    assert kube.objects["/api/v1/nodes/node-1"]["spec"]["unschedulable"] is True
    stages = ["coordinator-0", "inference-0", "reward-0", "tokenizer-0", "trainer-0"]
    last = ["gateway-1", "head-0", "redis-0"]
    assert order == [f"plinth-{name}" for name in (*stages, *last)]
    # Only what holds a replica of a stage is emptied by Ray.
    assert [name for name, _ in kube.executed] == [f"plinth-{name}" for name in stages]
    left = {path.rpartition("/")[2] for path in kube.objects if "/pods/" in path}
    assert left == {"plinth-gateway-2", "plinth-inference-1", "stranger"}
    assert "kubectl cordon node-1" in result.stderr
    assert "kubectl uncordon node-1" in result.stdout


@pytest.mark.parametrize(
    ("verb", "resource", "words"),
    [
        ("get", "pods/exec", 'resources: ["pods/exec"], verbs: ["get", "create"]'),
        ("create", "pods/eviction", "you may not create pods/eviction in serving"),
        ("get", "pods", "you may not get pods in serving"),
    ],
)
def test_a_right_that_is_missing(
    kube: KubeApi, kubeconfig: Path, verb: str, resource: str, words: str
) -> None:
    kube.forbidden.add((verb, resource))
    assert words in error_of(plinth_k8s(kubeconfig, "drain", "plinth-inference-0", key=""))
    assert POD in kube.objects


def test_nodes_take_a_cluster_role(kube: KubeApi, kubeconfig: Path) -> None:
    kube.put("/api/v1/nodes/node-1", {"kind": "Node", "spec": {}})
    kube.forbidden.add(("patch", "nodes"))
    said = error_of(plinth_k8s(kubeconfig, "drain", "node/node-1", key=""))
    assert "you may not patch nodes: a ClusterRole with the rule" in said
    assert "kubectl create clusterrole plinth-operator --verb=patch --resource=nodes" in said


def test_somebody_elses_pod(kube: KubeApi, kubeconfig: Path) -> None:
    stranger = pod("inference", "10.9.9.9")
    stranger["metadata"]["labels"] = labels("inference", "other")
    kube.put(f"{CORE}/pods/stranger", stranger)
    said = error_of(plinth_k8s(kubeconfig, "drain", "stranger", key=""))
    assert "stranger is no pod of the release plinth" in said
    assert not kube.executed
