"""`plinth k8s doctor` of an installed release."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from certificates import DAY, NOW, Authority
from kube_api import NAMESPACE, KubeApi
from kube_cluster import levels, of, plinth_k8s
from kube_gateway import KEY, ScriptedGateway
from kube_release import (
    CORE,
    RAY,
    pod,
    ray_release,
)
from plinth.cluster.finding import Finding
from plinth.cluster.kubernetes_ops import doctor_after
from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.gateway_client import opened
from plinth.cluster.kubernetes_ops.release import find
from plinth.v1 import deployments_pb2, operations_pb2

POD = f"{CORE}/pods/plinth-inference-0"


def after(
    kubeconfig: Path, gateway: ScriptedGateway, *models: str, key: str = KEY
) -> list[Finding]:
    with Api.open(kubeconfig=kubeconfig) as api:
        release = find(api)
        way = lambda: opened(api, release, address=gateway.address, key=key)  # noqa: E731
        return doctor_after.examine(api, release, way, list(models))


def test_a_release_that_is_well(well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway) -> None:
    findings = after(kubeconfig, gateway, "chat:prod")
    assert set(levels(findings).values()) == {"ok"}, findings
    assert of(findings, "secrets").found == "1 referred to, all there with their keys"
    result = plinth_k8s(kubeconfig, "doctor", "--model", "chat:prod", url=gateway.address)
    assert result.exit_code == 0, result.output
    assert "a-secret-value" not in result.output


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("OOMKilled", "resources.limits.memory"),
        ("ImagePullBackOff", "images.pullSecrets"),
        ("CrashLoopBackOff", "plinth k8s logs STAGE --previous"),
        ("CreateContainerConfigError", "Secret or ConfigMap"),
    ],
)
def test_pods_that_are_unwell(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway, reason: str, advice: str
) -> None:
    unwell = pod("inference", "10.0.1.3", ready=False)
    state = {"waiting": {"reason": reason, "message": "why"}}
    if reason == "OOMKilled":
        state = {"terminated": {"reason": reason, "exitCode": 137}}
    unwell["status"]["containerStatuses"][0] |= {"state": state, "restartCount": 6}
    well.put(POD, unwell)
    findings = after(kubeconfig, gateway)
    found = of(findings, "pods inference")
    assert (found.level, reason in found.found) == ("fail", True)
    assert advice in found.advice
    assert "6 restarts" in of(findings, "restarts inference").found
    assert plinth_k8s(kubeconfig, "doctor", url=gateway.address).exit_code == 1


def test_secrets_that_are_missing(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    secret = well.objects[f"{CORE}/secrets/plinth-secrets"]
    secret["data"] = {"auth_token": "eA=="}
    well.put(f"{CORE}/secrets/plinth-secrets", secret)
    found = of(after(kubeconfig, gateway), "secrets")
    assert (found.level, "plinth-secrets lacks {'cluster-token'}" in found.found) == ("fail", True)
    well.delete(f"{CORE}/secrets/plinth-secrets")
    assert "plinth-secrets does not exist" in of(after(kubeconfig, gateway), "secrets").found


@pytest.mark.parametrize(
    ("what", "level", "words"),
    [
        ("good", "ok", "plinth-inference, until"),
        ("expired", "fail", "the certificate expired on"),
        ("soon", "warn", "the certificate expires on"),
        ("early", "fail", "is not valid before"),
        ("name", "fail", "it names plinth-reward, not plinth-inference"),
        ("authority", "fail", "ca.crt did not issue it"),
        ("old authority", "fail", "the certificate of the authority expired on"),
        ("no pem", "fail", "is no PEM"),
    ],
)
def test_certificates(
    well: KubeApi,
    kubeconfig: Path,
    gateway: ScriptedGateway,
    tmp_path: Path,
    what: str,
    level: str,
    words: str,
) -> None:
    begins, ends = {"expired": (-90, -1), "soon": (-1, 5), "early": (5, 90)}.get(what, (-1, 90))
    authority = Authority(tmp_path / "a", ends=NOW + (-1 if what == "old authority" else 400) * DAY)
    name = "plinth-reward" if what == "name" else "plinth-inference"
    files = authority.issue(name, begins=NOW + begins * DAY, ends=NOW + ends * DAY)
    if what == "authority":
        files["ca"] = Authority(tmp_path / "b").ca
    if what == "no pem":
        files["certificate"].write_bytes(b"nonsense")
    keys = {"tls.crt": "certificate", "tls.key": "key", "ca.crt": "ca"}
    data = {k: base64.b64encode(files[file].read_bytes()).decode() for k, file in keys.items()}
    well.put(f"{CORE}/secrets/tls", {"kind": "Secret", "metadata": {}, "data": data})
    found = well.objects[POD]
    found["spec"]["volumes"] = [{"name": "tls", "secret": {"secretName": "tls"}}]
    well.put(POD, found)
    (told,) = [f for f in after(kubeconfig, gateway) if f.check == "certificate tls"]
    assert told.level == level
    assert words in told.found


def test_a_redis_that_only_reads(well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway) -> None:
    gateway.status.redis_error = (
        "Redis takes no writes now: You can't write against a read only replica."
    )
    found = of(after(kubeconfig, gateway), "redis")
    assert (found.level, "read only replica" in found.found) == ("fail", True)
    assert "primary" in found.advice


def test_models_that_do_not_exist(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    gateway.serve("code", "code@3")
    findings = after(kubeconfig, gateway, "chat:next")
    assert of(findings, "model chat:next").level == "fail"
    assert "no artifact is called chat:next" in of(findings, "model chat:next").found
    assert of(findings, "model code@3").level == "fail"  # its version is gone from the store
    assert of(findings, "model chat@7").level == "ok"


def test_a_rival_that_is_not_served(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    path = f"{CORE}/configmaps/plinth-config"
    config = well.objects[path]
    config["data"]["plinth.yaml"] = "gateway: {preference_rival: chat-next}\n"
    well.put(path, config)
    assert (
        "preference_rival 'chat-next' isn't served"
        in of(after(kubeconfig, gateway), "settings").found
    )


def test_shards_dead_letters_volumes_and_budgets(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    gateway.status.models[0].MergeFrom(
        operations_pb2.ModelStatus(
            ready_shards=1,
            state=deployments_pb2.DEPLOYMENT_STATE_STARTING,
            detail="no node has room",
        )
    )
    gateway.status.queues.add(name="train", dead=2)
    claim = {"kind": "PersistentVolumeClaim", "metadata": {}, "status": {"phase": "Pending"}}
    well.put(f"{CORE}/persistentvolumeclaims/data-plinth-redis-0", claim)
    labels = well.objects[POD]["metadata"]["labels"]
    budget = {"metadata": {"labels": labels}, "status": {"disruptionsAllowed": 0}}
    budgets = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"
    well.put(f"{budgets}/plinth-inference", budget)
    findings = after(kubeconfig, gateway)
    assert of(findings, "serving chat").level == "warn"
    assert of(findings, "queues").found == "dead letters: train 2"
    assert "data-plinth-redis-0 not bound" in of(findings, "volumes").found
    assert of(findings, "budgets").level == "warn"


def test_without_a_key_the_rest_is_told(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    findings = after(kubeconfig, gateway, key="plinth-wrong")
    assert of(findings, "platform").found == "not answered"
    assert "Incorrect API key" in of(findings, "platform").advice
    assert of(findings, "pods inference").level == "ok"


def test_ray_without_a_cluster(kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway) -> None:
    ray_release(kube)
    path = f"{RAY}/rayservices/plinth"
    found = kube.objects[path]
    found["status"]["activeServiceStatus"]["applicationStatuses"]["reward"] = {
        "status": "UNHEALTHY",
        "message": "replica died",
    }
    kube.put(path, found)
    assert "reward is UNHEALTHY: replica died" in of(after(kubeconfig, gateway), "serve").found
    # One that Serve says nothing of is not one that runs.
    del found["status"]["activeServiceStatus"]["applicationStatuses"]["reward"]
    kube.put(path, found)
    assert of(after(kubeconfig, gateway), "serve").found.startswith("reward is unknown")
    found["status"] = {"pendingServiceStatus": {"rayClusterName": "plinth-first"}}
    kube.put(path, found)
    assert (
        "no active Ray cluster (pending: plinth-first)"
        in of(after(kubeconfig, gateway), "ray").found
    )
