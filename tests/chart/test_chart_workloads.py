"""What a cluster's rules make of the pods: quotas, taints, PodSecurity; and changed Secrets."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml
from lookups import cluster, rendered_in
from test_chart_cluster_state import SECRET_KEYS

import rendering
from release import Pod, Release

STATIC: dict[str, Any] = {"ray": {"mode": "static"}}
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def limited(values: Any) -> Any:
    """The values' own `resources`, each with a limit of CPU."""
    if not isinstance(values, dict):
        return {}
    found = {key: limited(one) for key, one in values.items() if key != "resources"}
    found = {key: one for key, one in found.items() if one}
    return found | ({"resources": {"limits": {"cpu": "16"}}} if "resources" in values else {})


@pytest.mark.parametrize("mode", ["rayservice", "static"])
def test_a_quota_of_cpu_limits_can_be_met(any_helm: rendering.Helm, mode: str) -> None:
    """It refuses a pod any of whose containers has no limit: each can be given one by a value."""
    defaults = yaml.safe_load((rendering.CHART / "values.yaml").read_text())
    asked = {"ray": {"mode": mode}, "tests": {"chaos": {"enabled": True}}}
    asked["trainerWorkers"] = {"enabled": True, "pods": 1}
    asked["jobs"] = {"persistence": {"enabled": True}}
    values = rendering.merged(limited(defaults), asked)
    found = Release(rendering.documents(any_helm.render(values)))
    containers = {
        f"{pod.owner} {container['name']}": container["resources"]["limits"]
        for pod in found.pods
        for container in [*pod.containers, *pod.spec.get("initContainers", [])]
    }
    for service in found.of("RayService"):
        scaler = service["spec"]["rayClusterConfig"]["autoscalerOptions"]
        containers["the autoscaler"] = scaler["resources"]["limits"]
    assert {name: one.get("cpu") for name, one in containers.items()} == dict.fromkeys(
        containers, "16"
    )


def test_only_pods_with_gpus_tolerate_their_taint(any_helm: rendering.Helm) -> None:
    gpu = yaml.safe_load((rendering.CHART / "values-gpu.yaml").read_text())
    own = {"stages": {"reward": {"tolerations": [{"key": "pool", "operator": "Exists"}]}}}
    pods = Release(rendering.documents(any_helm.render(rendering.merged(gpu, own)))).pods
    tolerated = {pod.component: pod.spec.get("tolerations", []) for pod in pods}
    assert {name for name, found in tolerated.items() if GPU_TAINT in found} == {
        *("inference", "reward", "trainer-workers")
    }
    assert tolerated["reward"][0]["key"] == "pool", "its own stay"
    none = {"defaults": {"tolerations": None, "gpu": {"tolerations": None}}}
    left = Release(rendering.documents(any_helm.render(rendering.merged(gpu, none)))).pods
    assert not any(pod.spec.get("tolerations") for pod in left)


def sums(text: str) -> dict[str, str]:
    """checksum/secrets by component."""
    pods = Release([one for one in yaml.safe_load_all(text) if one]).pods
    return {
        pod.component: pod.annotations["checksum/secrets"]
        for pod in pods
        if "checksum/secrets" in pod.annotations
    }


def encoded(*words: str) -> str:
    return base64.b64encode("".join(words).encode()).decode()


@pytest.mark.parametrize("existing", [False, True])
def test_a_changed_secret_starts_who_reads_it_anew(existing: bool) -> None:
    name = "own" if existing else "demo-plinth-secrets"
    values = {**STATIC, "secrets": {"existingSecret": name if existing else ""}}
    kept = {key: encoded(key) for key in SECRET_KEYS}

    def changed(key: str) -> set[str]:
        with cluster([], {name: {**kept, key: encoded("another ", key)}}) as url:
            after = sums(rendered_in(url, values))
        return {pod for pod in before if before[pod] != after[pod]}

    with cluster([], {name: kept}) as url:
        before = sums(rendered_in(url, values))
        assert sums(rendered_in(url, values)) == before
    ray = {"head", "tokenizer", "trainer", "reward", "coordinator", "inference"}
    assert set(before) == {"gateway", "redis", *ray}
    assert changed("cluster-token") == set(before)
    assert changed("auth_token") == ray
    assert changed("redis-password") == set(before)
    assert changed("api-key") == {"gateway"}


# One with every Secret that pods read when they start: of a bucket's key as a file, too.
READING: dict[str, dict[str, Any]] = {
    "s3": {"store": {"url": "s3://bucket", "s3": {"existingSecret": "bucket"}}},
    "gs": {"store": {"url": "gs://bucket", "gcs": {"existingSecret": "bucket"}}},
    "redis": {
        "redis": {
            "enabled": False,
            "external": {"host": "redis.example.com", "existingSecret": "redis"},
        }
    },
}
# Of volumes: what is read anew when it changes (certificates).
FOLLOWED = frozenset({"redis-ca", "tls"})


def read(pod: Pod) -> set[tuple[str, str]]:
    """(Secret, key) of all that the pod's processes read once, by its variables and volumes."""
    containers = [*pod.containers, *pod.spec.get("initContainers", [])]
    found = {
        (ref["name"], ref["key"])
        for container in containers
        for variable in container.get("env", [])
        if (ref := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    for volume in pod.spec.get("volumes", []):
        if "secret" in volume and volume["name"] not in FOLLOWED:
            secret = volume["secret"]
            found |= {(secret["secretName"], item["key"]) for item in secret["items"]}
    return found


@pytest.mark.parametrize("mode", ["static", "rayservice"])
@pytest.mark.parametrize("case", READING)
def test_all_that_is_read_is_in_the_sum(case: str, mode: str) -> None:
    """By what the pods hold: a key that the sum leaves out would be followed by nobody."""
    values = {"secrets": {"existingSecret": "own"}, "ray": {"mode": mode}, **READING[case]}
    with cluster([]) as url:
        text = rendered_in(url, values)
    pods = Release([one for one in yaml.safe_load_all(text) if one]).pods
    by_pod = {pod.component: read(pod) for pod in pods if "checksum/secrets" in pod.annotations}
    keys = sorted(set().union(*by_pod.values()))
    assert {name for name, _ in keys} == {"own", *({"redis"} if case == "redis" else {"bucket"})}
    before = sums(text)
    for name, key in keys:
        with cluster([], {name: {key: encoded("another")}}) as url:
            after = sums(rendered_in(url, values))
        left = {pod for pod, held in by_pod.items() if (name, key) in held} & {
            pod for pod in before if before[pod] == after[pod]
        }
        assert left == set(), f"{key} of {name}"


def test_the_first_upgrade_finds_what_the_install_made() -> None:
    """Else each release would be started anew once, for nothing."""
    with cluster([]) as url:
        text = rendered_in(url, STATIC)
    (made,) = [one for one in yaml.safe_load_all(text) if one and one["kind"] == "Secret"]
    with cluster([], {"demo-plinth-secrets": made["data"]}) as url:
        assert sums(rendered_in(url, STATIC)) == sums(text)


def test_keys_of_a_bucket_are_followed_as_well() -> None:
    values = {
        **STATIC,
        "secrets": {"existingSecret": "own"},
        "store": {"url": "s3://bucket", "s3": {"existingSecret": "bucket"}},
    }
    found = []
    for word in ("one", "two"):
        keys = {"access-key-id": encoded("id"), "secret-access-key": encoded(word)}
        with cluster([], {"bucket": keys}) as url:
            found.append(sums(rendered_in(url, values)))
    one, two = found
    assert {pod for pod in one if one[pod] == two[pod]} == {"gateway", "redis"}


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_cache_on_the_node_is_refused_where_no_pod_may_have_it(level: str) -> None:
    values = {"cache": {"type": "hostPath"}}
    refusal = (
        f'enforces PodSecurity "{level}", which allows no pod a hostPath: set cache.type=empty'
    )
    with cluster([], enforced=level) as url:
        with pytest.raises(Exception, match=refusal):
            rendered_in(url, values)
        assert "kind: RayService" in rendered_in(url, {})
    with cluster([], enforced="privileged") as url:
        assert "path: /var/cache/plinth" in rendered_in(url, values)
