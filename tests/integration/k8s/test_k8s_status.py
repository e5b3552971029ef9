"""`plinth k8s status`: one screen of what Kubernetes and the platform know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kube_api import KubeApi
from kube_calls import Reply
from kube_cluster import plinth_k8s
from kube_gateway import ScriptedGateway, canary_run, shard
from kube_release import CORE, RAY, pod, ray_release, static_pods, static_release, warning
from plinth.shared.api import times
from plinth.v1 import deployments_pb2, operations_pb2
from plinth.v1 import runs_pb2 as pb

POD = f"{CORE}/pods/plinth-inference-0"


@pytest.fixture
def told(kube: KubeApi, gateway: ScriptedGateway) -> ScriptedGateway:
    """A static release whose platform has something to say of everything."""
    static_release(kube)
    static_pods(kube)
    address = kube.objects[POD]["status"]["podIP"]
    gateway.status = operations_pb2.GetStatusResponse(
        replicas=[shard(address, running=3, kv=0.625), shard("10.0.2.1", running=1, kv=0.25)],
        models=[
            operations_pb2.ModelStatus(
                model="chat",
                artifact="chat@7",
                shards=3,
                ready_shards=2,
                state=deployments_pb2.DEPLOYMENT_STATE_STARTING,
                detail="no room for a shard",
            )
        ],
        queues=[operations_pb2.Queue(name="queues/train", waiting=4, claimed=1, delayed=2, dead=3)],
        canaries=[
            operations_pb2.CanaryStatus(
                model="chat",
                state=operations_pb2.CANARY_STATE_OPEN,
                step="run.canary.1",
                stable=operations_pb2.RevisionTally(
                    requests=90, errors=1, ttft_p95=times.duration(0.2)
                ),
                canary=operations_pb2.RevisionTally(requests=10),
            )
        ],
        redis_error="Redis takes no writes now: read only",
    )
    gateway.runs = [canary_run(pb.RUN_STATE_FAILED, error="chat@8 is rolled back: 3 of 10 failed")]
    return gateway


def status(kubeconfig: Path, gateway: ScriptedGateway, *more: str) -> Any:
    result = plinth_k8s(kubeconfig, "status", "--json", *more, url=gateway.address)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_all_of_it(kube: KubeApi, kubeconfig: Path, told: ScriptedGateway) -> None:
    found = status(kubeconfig, told)
    stage = next(one for one in found["stages"] if one["stage"] == "inference")
    assert (stage["wanted"], stage["pods"], stage["ready"], stage["replicas"]) == (2, 2, 2, 2)
    assert (stage["running"], stage["kv_use"], stage["revisions"]) == (4, 0.625, ["chat@7"])
    assert stage["images"] == ["registry.example/plinth/cpu:0.1.0"]
    pods = {one["pod"]: one["node"] for one in found["replicas"]}
    assert pods == {"plinth-inference-0": "node-1", "plinth-inference-1": "node-2"}
    assert found["queues"] == [
        {"name": "train", "waiting": 4, "claimed": 1, "delayed": 2, "dead": 3, "oldest_wait_s": 0.0}
    ]
    assert found["models"][0]["ready"] == 2
    assert found["canaries"][0]["stable"]["ttft_p95_s"] == 0.2
    assert found["canaries"][0]["canary"]["ttft_p95_s"] is None
    assert found["runs"] == [
        {
            "run_id": "rollout-1",
            "name": "rollout-chat",
            "state": "failed",
            "steps_done": 0,
            "steps": 1,
        }
    ]
    errors = {one["where"]: one["what"] for one in found["errors"]}
    assert errors["redis"].endswith("read only")
    assert errors["model/chat"] == "no room for a shard"
    assert errors["runs/rollout-1"] == "chat@8 is rolled back: 3 of 10 failed"
    assert found["unknown"] == {}


def test_one_screen_of_it(kube: KubeApi, kubeconfig: Path, told: ScriptedGateway) -> None:
    result = plinth_k8s(kubeconfig, "status", url=told.address)
    lines = result.stdout.splitlines()
    assert len(lines) < 50
    assert lines[0].startswith("plinth  in serving  0.1.0  static")
    row = next(line for line in lines if " inference " in line and "2/2" in line)
    assert row.split()[-2:] == ["62%", "chat@7"]
    for title in ("replicas", "models", "canaries", "queues", "runs", "last errors"):
        assert title in lines
    assert "10 beside 90" in result.stdout
    assert "$ kubectl -n serving get pods,deployment,statefulset" in result.stderr


def test_how_pods_end_and_what_was_warned_of(
    kube: KubeApi, kubeconfig: Path, told: ScriptedGateway
) -> None:
    unwell = pod("inference", "10.0.3.1", ready=False)
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    waits = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m"}}
    unwell["status"]["containerStatuses"] = [
        {"name": "ray", "restartCount": 7, "state": waits, "lastState": ended}
    ]
    kube.put(POD, unwell)
    unplaced = pod("trainer", "", ready=False)
    unplaced["status"] = {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu",
            }
        ],
    }
    kube.put(f"{CORE}/pods/plinth-trainer-0", unplaced)
    for number, (name, minute) in enumerate(
        (("plinth-head-0", 1), ("plinth-head-0", 2), ("stranger", 3))
    ):
        message, when = f"probe failed in minute {minute}", f"2026-01-01T00:0{minute}:00Z"
        event = warning("Pod", name, "Unhealthy", message, when)
        kube.put(f"{CORE}/events/e{number}", event)
    ending = kube.objects[f"{CORE}/pods/plinth-reward-0"]
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    kube.put(f"{CORE}/pods/plinth-reward-0", ending)
    found = status(kubeconfig, told)
    stages = {one["stage"]: one for one in found["stages"]}
    assert (stages["inference"]["ready"], stages["inference"]["restarts"]) == (1, 7)
    assert stages["reward"]["ready"] == 0  # it ends, whatever its probe says
    errors = [(one["where"], one["what"]) for one in found["errors"]]
    assert ("plinth-inference-0", "ray CrashLoopBackOff: back-off 5m") in errors
    assert (
        "plinth-trainer-0",
        "Unschedulable: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu",
    ) in errors
    # The newest of one object and reason, and nobody else's.
    warned = [what for where, what in errors if what.startswith("Unhealthy")]
    assert warned == ["Unhealthy: probe failed in minute 2"]


def test_a_ray_service(kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway) -> None:
    ray_release(kube)
    path = f"{RAY}/rayservices/plinth"
    found = kube.objects[path]
    found["status"]["pendingServiceStatus"] = {
        "rayClusterName": "plinth-next",
        "applicationStatuses": {"reward": {"status": "DEPLOY_FAILED", "message": "no module x"}},
    }
    kube.put(path, found)
    seen = status(kubeconfig, gateway)
    assert seen["release"]["ray"] == "Running, plinth-raycluster-abcde, upgrading to plinth-next"
    assert {"where": "serve/reward", "what": "no module x"} in seen["errors"]
    wanted = {one["stage"]: one["wanted"] for one in seen["stages"]}
    assert (wanted["inference"], wanted["head"], wanted["gateway"]) == (2, 1, 2)
    assert "redis" not in wanted


def test_the_gateway_is_reached_through_the_api_server(
    kube: KubeApi, kubeconfig: Path, told: ScriptedGateway
) -> None:
    """Nothing but a kubeconfig and a key: real gRPC through a forwarded port."""
    kube.ports[8081] = told.port
    result = plinth_k8s(kubeconfig, "status", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["unknown"] == {}
    assert found["queues"][0]["name"] == "train"
    assert {call.path for call in kube.made("GET", "/portforward$")} == {
        f"{CORE}/pods/plinth-gateway-1/portforward"
    }


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("forbidden", "you may not get or create pods/portforward in serving"),
        ("gone", 'pods "plinth-gateway-1" not found'),
        ("no gateway", "no gateway of plinth is ready"),
        ("wrong key", "Incorrect API key"),
        ("nobody at the port", "UNAVAILABLE|onnect|ocket|losed|RST|failed"),
    ],
)
def test_what_keeps_from_the_gateway_is_named(
    kube: KubeApi, kubeconfig: Path, told: ScriptedGateway, what: str, words: str
) -> None:
    kube.ports[8081] = told.port
    key = {}
    if what == "forbidden":
        kube.forbidden.add(("get", "pods/portforward"))
    elif what == "gone":
        kube.script("GET", "/portforward$", Reply(404, 'pods "plinth-gateway-1" not found'))
    elif what == "no gateway":
        for number in (1, 2):
            kube.put(f"{CORE}/pods/plinth-gateway-{number}", pod("gateway", "", ready=False))
    elif what == "wrong key":
        key = {"key": "plinth-wrong"}
    else:
        kube.ports[8081] = 1
    result = plinth_k8s(kubeconfig, "status", "--json", **key)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert any(word in found["unknown"]["platform"] for word in words.split("|"))
    assert next(s for s in found["stages"] if s["stage"] == "inference")["ready"] == 2
