"""`plinth k8s scale`: pods where Kubernetes keeps their number, shards where the store does."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_api import KubeApi
from kube_calls import Reply
from kube_cluster import error_of, plinth_k8s
from kube_gateway import ScriptedGateway
from kube_release import APPS, CLUSTER, RAY, ray_release, static_release
from plinth.cluster.kubernetes_ops.room import MAX_PODS
from plinth.v1.deployments_pb2 import SPECULATION_MODE_LOOKUP, SpeculationSpec

SERVICE, ACTIVE = f"{RAY}/rayservices/plinth", f"{RAY}/rayclusters/{CLUSTER}"


def group(kube: KubeApi, path: str, name: str) -> dict[str, object]:
    spec = kube.objects[path]["spec"]
    groups = spec.get("rayClusterConfig", spec)["workerGroupSpecs"]
    found: dict[str, object] = next(one for one in groups if one["groupName"] == name)
    return found


def numbers(kube: KubeApi, path: str, name: str) -> tuple[object, ...]:
    found = group(kube, path, name)
    return tuple(found[key] for key in ("replicas", "minReplicas", "maxReplicas"))


def bounds(serve: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Of Serve's replicas by stage."""
    numbers = {
        one["name"]: one["deployments"][0]["autoscaling_config"] for one in serve["applications"]
    }
    return {name: (n["min_replicas"], n["max_replicas"]) for name, n in numbers.items()}


def test_a_worker_group_grows_in_the_service_and_in_its_cluster(
    kube: KubeApi, kubeconfig: Path
) -> None:
    ray_release(kube)
    result = plinth_k8s(kubeconfig, "scale", "inference", "6", "--force")
    assert result.exit_code == 0, result.output
    for path in (SERVICE, ACTIVE):
        assert numbers(kube, path, "inference") == (6, 6, 6)
        assert numbers(kube, path, "reward") == (1, 1, 2)
        assert "template" in group(kube, path, "inference")
    assert f"worker group inference of {CLUSTER}: 2 to 6 pods" in result.stdout
    assert "--set stages.inference.pods=6 --set stages.inference.maxPods=6" in result.stdout
    # What is printed is what was sent, and a shell reads it back.
    lines = [shlex.split(line) for line in result.stderr.splitlines() if " patch " in line]
    assert [words[5] for words in lines] == ["rayservice/plinth", f"raycluster/{CLUSTER}"]
    for words, path in zip(lines, (SERVICE, ACTIVE), strict=True):
        (sent,) = kube.made("PATCH", f"{path}$")
        assert json.loads(words[-1]) == sent.body[1:]


def test_with_an_autoscaler_only_it_takes_pods_away(kube: KubeApi, kubeconfig: Path) -> None:
    ray_release(kube)
    result = plinth_k8s(kubeconfig, "scale", "inference", "1", "--force")
    assert numbers(kube, ACTIVE, "inference") == (2, 1, 4)
    assert "Ray's autoscaler takes pods away once they idle" in result.stdout


def test_without_one_the_number_is_the_number(kube: KubeApi, kubeconfig: Path) -> None:
    ray_release(kube, autoscaler=False)
    assert plinth_k8s(kubeconfig, "scale", "inference", "1", "--force").exit_code == 0
    assert numbers(kube, ACTIVE, "inference") == (1, 1, 4)


def test_serve_replicas_go_along(kube: KubeApi, kubeconfig: Path) -> None:
    ray_release(kube)
    result = plinth_k8s(kubeconfig, "scale", "tokenizer", "3", "--replicas", "2")
    assert result.exit_code == 0, result.output
    serve = yaml.safe_load(kube.objects[SERVICE]["spec"]["serveConfigV2"])
    assert bounds(serve) == {
        **{"coordinator": (1, 1), "reward": (1, 1), "trainer": (1, 1)},
        "tokenizer": (2, 2),
    }
    assert serve["proxy_location"] == "Disabled"
    assert "--set stages.tokenizer.replicas=2" in result.stdout


def test_where_load_decides_it_is_the_least_that_changes(kube: KubeApi, kubeconfig: Path) -> None:
    ray_release(kube)
    found = kube.objects[SERVICE]
    serve = yaml.safe_load(found["spec"]["serveConfigV2"])
    (reward,) = [one for one in serve["applications"] if one["name"] == "reward"]
    reward["deployments"][0]["autoscaling_config"]["max_replicas"] = 4
    found["spec"]["serveConfigV2"] = yaml.safe_dump(serve)
    kube.put(SERVICE, found)
    for replicas, most in ((2, 4), (5, 5)):
        arguments = ("scale", "reward", "5", "--replicas", str(replicas))
        assert plinth_k8s(kubeconfig, *arguments).exit_code == 0
        serve = yaml.safe_load(kube.objects[SERVICE]["spec"]["serveConfigV2"])
        assert bounds(serve)["reward"] == (replicas, most)


def test_a_chart_of_before_is_to_be_upgraded_first(kube: KubeApi, kubeconfig: Path) -> None:
    ray_release(kube)
    found = kube.objects[SERVICE]
    found["spec"]["serveConfigV2"] = yaml.safe_dump(
        {"applications": [{"name": "reward", "args": {"name": "reward", "replicas": 1}}]}
    )
    kube.put(SERVICE, found)
    told = error_of(plinth_k8s(kubeconfig, "scale", "reward", "2", "--replicas", "2"))
    assert "helm upgrade` to this version first" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tokenizer", "0"), "Serve runs 1 replicas of tokenizer, one a pod"),
        (("tokenizer", "2", "--replicas", "3"), "--replicas with 1 to 2"),
        (("inference", "2", "--replicas", "2", "--force"), "shards belong to models"),
        (("node/x", "2"), "a stage, or model/NAME"),
        (("reward", "1001"), "0 to 1000"),
    ],
)
def test_bad_numbers(
    kube: KubeApi, kubeconfig: Path, arguments: tuple[str, ...], words: str
) -> None:
    ray_release(kube)
    before = json.dumps(kube.objects)
    assert words in error_of(plinth_k8s(kubeconfig, "scale", *arguments))
    assert json.dumps(kube.objects) == before


def test_a_write_in_between_is_not_undone(kube: KubeApi, kubeconfig: Path) -> None:
    """The autoscaler writes between our read and our write: the server says 409, we read again."""
    ray_release(kube)
    kube.script("PATCH", ACTIVE, Reply(409, "the object has been modified"))
    kube.script("PATCH", SERVICE, Reply(409, "the object has been modified"))
    assert plinth_k8s(kubeconfig, "scale", "reward", "2").exit_code == 0
    assert numbers(kube, ACTIVE, "reward") == (2, 2, 2)
    assert [len(kube.made("PATCH", path)) for path in (SERVICE, ACTIVE)] == [2, 2]
    reads = [call for call in kube.made("GET", ACTIVE)]
    assert len(reads) == 2
    versions = [call.body[0] for call in kube.made("PATCH", ACTIVE)]
    assert all(one["path"] == "/metadata/resourceVersion" for one in versions)


def test_an_upgrade_under_way(kube: KubeApi, kubeconfig: Path) -> None:
    ray_release(kube)
    found = kube.objects[SERVICE]
    found["status"] = {"pendingServiceStatus": {"rayClusterName": "plinth-next"}}
    kube.put(SERVICE, found)
    assert "no active Ray cluster yet" in error_of(plinth_k8s(kubeconfig, "scale", "reward", "2"))


def test_static_replicas_take_an_upgrade(kube: KubeApi, kubeconfig: Path) -> None:
    static_release(kube)
    said = error_of(plinth_k8s(kubeconfig, "scale", "reward", "2", "--replicas", "2"))
    assert "--set stages.reward.pods=2 --set stages.reward.replicas=2" in said


def test_who_may_read_but_not_scale(kube: KubeApi, kubeconfig: Path) -> None:
    static_release(kube)
    kube.forbidden.add(("patch", "statefulsets/scale"))
    said = error_of(plinth_k8s(kubeconfig, "scale", "reward", "2"))
    assert "you may not patch statefulsets/scale in serving" in said
    assert "--verb=patch --resource=statefulsets.apps/scale" in said


def test_shards_keep_their_room(kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway) -> None:
    static_release(kube)
    gateway.serve("chat", "chat@7", 2)
    said = error_of(plinth_k8s(kubeconfig, "scale", "inference", "1", url=gateway.address))
    assert "2 shards (chat 2) need 2 inference pods, and plinth has room for 1" in said
    assert plinth_k8s(kubeconfig, "scale", "inference", "3", url=gateway.address).exit_code == 0
    assert plinth_k8s(kubeconfig, "scale", "inference", "1", "--force").exit_code == 0


def test_shards_are_desired_state_on_the_store(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    static_release(kube)
    lookup = SpeculationSpec(mode=SPECULATION_MODE_LOOKUP)
    gateway.serve("chat", "chat@7", 1, speculation=lookup)
    result = plinth_k8s(kubeconfig, "scale", "model/chat", "2", url=gateway.address)
    assert "chat (chat@7) is to have 2 shards, had 1" in result.stdout
    assert "plinth models serve chat@7 --shards 2" in result.stderr
    put = gateway.deployments["chat"].spec
    assert (put.shards, put.artifact, put.speculation) == (2, "chat@7", lookup)
    said = error_of(plinth_k8s(kubeconfig, "scale", "model/chat", "3", url=gateway.address))
    assert "first `plinth k8s scale inference 3`" in said
    said = error_of(plinth_k8s(kubeconfig, "scale", "model/nope", "1", url=gateway.address))
    assert "no model 'nope' is to be served; there are: chat" in said
    said = error_of(plinth_k8s(kubeconfig, "scale", "model/chat", "65", url=gateway.address))
    assert "65 shards: 1 to 64" in said


def test_shards_may_go_where_ray_can_start_pods(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    ray_release(kube)
    gateway.serve("chat", "chat@7", 1)
    result = plinth_k8s(kubeconfig, "scale", "model/chat", "4", url=gateway.address)
    assert result.exit_code == 0, result.output


def test_shards_may_go_where_the_stage_is_scaled(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    static_release(kube)
    path = f"{APPS}/statefulsets/plinth-inference"
    found = kube.objects[path]
    found["metadata"]["annotations"] = {MAX_PODS: "4"}
    kube.put(path, found)
    gateway.serve("chat", "chat@7", 1, max_shards=4)
    result = plinth_k8s(kubeconfig, "scale", "model/chat", "3", url=gateway.address)
    assert "is to have 3 to 4 shards, had 1" in result.stdout
    assert gateway.deployments["chat"].spec.max_shards == 4
    # As many as it has now, beside those of the others, must find room.
    gateway.deployments["chat"].status.ready_shards = 4
    gateway.serve("code", "code@1", 1)
    said = error_of(plinth_k8s(kubeconfig, "scale", "model/code", "2", url=gateway.address))
    assert "6 shards (chat 4, code 2) need 6 inference pods" in said


def test_without_a_key_the_way_to_one_is_told(kube: KubeApi, kubeconfig: Path) -> None:
    static_release(kube)
    said = error_of(plinth_k8s(kubeconfig, "scale", "model/chat", "2", key=""))
    assert "plinth keys create --local --label operator --scope deployments" in said
