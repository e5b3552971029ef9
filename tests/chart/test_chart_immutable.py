"""What can't be changed of a release, or would be left behind: refused by the chart, with a way
that leads there. Real Helms, on an API server that refuses as Kubernetes does."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import immutable
import kube_helm
import rendering
from kube_api import NAMESPACE
from kube_helm import HelmClient, HelmServer
from kube_objects import Json
from release import Release

# Values whose change no upgrade can make, or makes beside the data that there are.
GUARDED = {
    "redis.persistence.enabled",
    "redis.persistence.size",
    "redis.persistence.storageClass",
    "store.persistence.size",
    "store.persistence.storageClass",
    "store.persistence.accessModes",
    "jobs.persistence.size",
    "jobs.persistence.storageClass",
    "jobs.persistence.accessModes",
    "nameOverride",
    "fullnameOverride",
    "redis.enabled",
    "redis.database",
    "store.url",
    "store.persistence.existingClaim",
}
# Jobs begin again elsewhere, from their inputs; the claim stays.
OWN = {"jobs.persistence.existingClaim", "jobs.persistence.enabled"}
APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
CLAIMS = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
# What has volumes, without what has none, so that Helm is quick.
BASE: Json = {
    "ray": {"mode": "static"},
    "networkPolicy": {"enabled": False},
    "defaults": {"pdb": {"enabled": False}},
    "jobs": {"persistence": {"enabled": True}},
}


def other(path: str, value: Any) -> Any:
    """Another value of the same type, fit for the templates."""
    if path.endswith("accessModes"):
        return ["ReadWriteOnce"]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, value[0]] if value else [{"name": "other"}]
    if isinstance(value, dict):
        return {f"other-{path}"[:60].replace("_", "-"): "thing"}
    if re.fullmatch(r"[0-9]+[GM]i", value):
        return f"9{value}"
    return f"{value}x"


def leaves(values: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values of all that can be set."""
    for key, value in values.items():
        path = f"{at}.{key}" if at else key
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        else:
            yield path, value


def with_set(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(values)
    for path, value in changes.items():
        *above, last = path.split(".")
        node = made
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return made


@pytest.mark.parametrize("mode", ["static", "rayservice"])
def test_every_value_that_can_not_be_changed_is_guarded(
    mode: str, any_helm: rendering.Helm, tmp_path: Path
) -> None:
    """All values are tried, by a chart that refuses nothing: the others at once, and fewer only to
    name the one that is not guarded."""
    chart = tmp_path / "plinth"
    shutil.copytree(rendering.CHART, chart)
    (chart / "values.schema.json").unlink()
    for refusals in (chart / "templates").glob("validate*.yaml"):
        refusals.unlink()
    base = rendering.merged(
        yaml.safe_load((chart / "values.yaml").read_text()), {**BASE, "ray": {"mode": mode}}
    )
    before = Release(rendering.documents(any_helm.render(base, chart=chart)))
    left_out = {"ray.mode", "extraObjects"}  # the one is a case of its own, the other are no values
    tried = {path: other(path, value) for path, value in leaves(base) if path not in left_out}
    assert set(tried) >= GUARDED | OWN

    def told(paths: list[str]) -> list[str]:
        changes = {path: tried[path] for path in paths}
        text = any_helm.render(with_set(base, changes), chart=chart)
        return list(immutable.changed(before, Release(rendering.documents(text))))

    others = sorted(set(tried) - GUARDED - OWN)
    if found := told(others):
        while len(others) > 1:
            half = others[: len(others) // 2]
            others = half if told(half) else others[len(half) :]
        pytest.fail(f"{others[0]} is not guarded: {found}")
    if mode == "static":
        for path in sorted(GUARDED | OWN):
            assert told([path]), f"{path} changes nothing that is fixed: guard it no more"


@pytest.fixture
def kube() -> Iterator[HelmServer]:
    with HelmServer() as running:
        yield running


@pytest.fixture
def kubeconfig(kube: HelmServer, tmp_path: Path) -> Path:
    return kube.kubeconfig(tmp_path)


@pytest.fixture
def client(helm: rendering.Helm, kubeconfig: Path) -> HelmClient:
    return kube_helm.client(helm, kubeconfig, NAMESPACE)


def claimed(kube: HelmServer) -> str:
    """What the StatefulSet's controller does: Redis' claim. Its path."""
    (template,) = kube.objects[f"{APPS}/statefulsets/plinth-redis"]["spec"]["volumeClaimTemplates"]
    path = f"{CLAIMS}/data-plinth-redis-0"
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {}}
    spec = {"storageClassName": "standard", **template["spec"]}
    kube.put(path, {**claim, "spec": spec})
    return path


# value → what it is set to, what the refusal says
WAYS: dict[str, tuple[Any, str]] = {
    "redis.persistence.enabled": (False, "set redis.persistence.enabled=true"),
    "redis.persistence.size": ("16Gi", "delete statefulset plinth-redis --cascade=orphan"),
    "redis.persistence.storageClass": ("fast", "redis.persistence.storageClass is fast and"),
    "store.persistence.size": ("200Gi", "patch pvc plinth-store"),
    "store.persistence.storageClass": ("fast", "set store.persistence.storageClass=standard"),
    "store.persistence.accessModes": (
        ["ReadWriteMany", "ReadWriteOnce"],
        r'PersistentVolumeClaim/plinth-store has \["ReadWriteMany"\]',
    ),
    "jobs.persistence.size": ("50Gi", "Set jobs.persistence.size=100Gi"),
    "jobs.persistence.storageClass": ("fast", "set jobs.persistence.storageClass=standard"),
    "jobs.persistence.accessModes": (
        ["ReadWriteOnce"],
        r'PersistentVolumeClaim/plinth-jobs has \["ReadWriteMany"\]',
    ),
    "nameOverride": ("llm", "fullnameOverride=plinth gives these names"),
    "fullnameOverride": ("llm", "fullnameOverride=plinth gives these names"),
    "redis.enabled": (False, "plinth.dev/redis=redis.example.com:6379/1"),
    "redis.database": (2, "plinth.dev/redis=plinth-redis:6379/2"),
    "store.url": ("s3://bucket/plinth", "plinth.dev/store=s3://bucket/plinth"),
    "store.persistence.existingClaim": ("mine", "plinth.dev/store=claim/mine"),
}
# What else such a change takes, so that nothing but the guard refuses it.
BESIDE: dict[str, Json] = {
    "redis.enabled": {"redis": {"external": {"host": "redis.example.com"}}},
    "store.url": {"store": {"s3": {"existingSecret": "bucket-key"}}},
}


def upgrade_to(path: str, value: Any) -> Json:
    return with_set(rendering.merged(BASE, BESIDE.get(path, {})), {path: value})


def test_each_guarded_value_is_refused_before_anything_is_changed(
    kube: HelmServer, client: HelmClient
) -> None:
    assert set(WAYS) == GUARDED
    client.install(BASE)
    claimed(kube)
    before = copy.deepcopy(kube.objects)
    for path, (value, told) in WAYS.items():
        with pytest.raises(rendering.Refused, match=told) as refused:
            client.upgrade(upgrade_to(path, value))
        assert "validate-volumes.yaml" in str(refused.value), path
    assert {p: one for p, one in kube.objects.items() if "/secrets/sh.helm" not in p} == {
        p: one for p, one in before.items() if "/secrets/sh.helm" not in p
    }
    client.upgrade(BASE)  # and nothing is refused that was left as it is


def kubectl(kubeconfig: Path, refusal: str) -> None:
    """Runs each command that the refusal names."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here (Debian: kubernetes-client)")
    commands = re.findall(r"(kubectl [^;]*?)(?:;| \(its pod)", refusal)
    assert commands, refusal
    for command in commands:
        words = f"{command} --kubeconfig {kubeconfig}"
        if " delete " in command:
            words += " --wait=false"  # the server tells of an end at once
        subprocess.run(["sh", "-ec", words], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "path", ["redis.persistence.size", "store.persistence.size", "redis.database", "store.url"]
)
def test_the_way_that_a_refusal_names_leads_there(
    path: str, helm: rendering.Helm, kube: HelmServer, client: HelmClient, kubeconfig: Path
) -> None:
    if helm.name == "Helm 3" and "persistence" not in path:
        pytest.skip("Helm 3 patches lists of variables, which the scripted server can't merge")
    client.install(BASE)
    claim = claimed(kube)
    wanted = upgrade_to(path, WAYS[path][0])
    with pytest.raises(rendering.Refused) as refused:
        client.upgrade(wanted)
    kubectl(kubeconfig, str(refused.value))
    client.upgrade(wanted)
    config = kube.objects[f"/api/v1/namespaces/{NAMESPACE}/configmaps/plinth-config"]
    if path == "redis.persistence.size":
        assert immutable.size_of(kube.objects[claim]) == 16 << 30
        (template,) = kube.objects[f"{APPS}/statefulsets/plinth-redis"]["spec"][
            "volumeClaimTemplates"
        ]
        assert immutable.size_of(template) == 16 << 30
    elif path == "store.persistence.size":
        assert immutable.size_of(kube.objects[f"{CLAIMS}/plinth-store"]) == 200 << 30
    elif path == "redis.database":
        assert config["metadata"]["annotations"]["plinth.dev/redis"].endswith("/2")
    else:
        assert "s3://bucket/plinth" in config["data"]["plinth.yaml"]


def test_a_class_that_is_no_longer_named_is_the_volumes_own(
    kube: HelmServer, client: HelmClient
) -> None:
    """Kubernetes would take the missing name for a change, and refuse it."""
    named = {part: {"persistence": {"storageClass": "fast"}} for part in ("redis", "store", "jobs")}
    client.install(rendering.merged(BASE, named))
    client.upgrade(BASE)
    (template,) = kube.objects[f"{APPS}/statefulsets/plinth-redis"]["spec"]["volumeClaimTemplates"]
    claims = [kube.objects[f"{CLAIMS}/plinth-{part}"] for part in ("store", "jobs")]
    assert {one["spec"]["storageClassName"] for one in (template, *claims)} == {"fast"}


def test_redis_volume_of_an_earlier_release_is_taken_up_as_it_is(
    kube: HelmServer, client: HelmClient
) -> None:
    """An uninstall leaves it; an install that asks for more would go on with less, unsaid."""
    path = f"{CLAIMS}/data-plinth-redis-0"
    spec = {"storageClassName": "standard", "resources": {"requests": {"storage": "8Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {}, "spec": spec}
    kube.put(path, claim)
    for change, told in (
        ({"size": "16Gi"}, "or set redis.persistence.size=8Gi"),
        ({"storageClass": "fast"}, "set redis.persistence.storageClass=standard"),
    ):
        with pytest.raises(rendering.Refused, match=told):
            client.install(rendering.merged(BASE, {"redis": {"persistence": change}}))
    client.install(rendering.merged(BASE, {"redis": {"persistence": {"size": "8192Mi"}}}))


def test_redis_without_a_volume_is_given_none(kube: HelmServer, client: HelmClient) -> None:
    bare = rendering.merged(BASE, {"redis": {"persistence": {"enabled": False}}})
    client.install(bare)
    with pytest.raises(rendering.Refused, match="has no volume, which Kubernetes lets nobody give"):
        client.upgrade(BASE)
    client.upgrade(bare)
