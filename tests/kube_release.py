"""Releases of the chart as a cluster holds them: the objects and labels that operations go by."""

from __future__ import annotations

from typing import Any, Protocol

import yaml

from kube_api import NAMESPACE, KubeApi

Json = dict[str, Any]
CORE = f"/api/v1/namespaces/{NAMESPACE}"
APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
RAY = f"/apis/ray.io/v1/namespaces/{NAMESPACE}"
STAGES = ("coordinator", "inference", "reward", "tokenizer", "trainer")
CLUSTER = "plinth-raycluster-abcde"


class Cluster(Protocol):
    """What holds objects."""

    def put(self, path: str, found: Json) -> Any: ...


def labels(component: str, release: str = "plinth") -> dict[str, str]:
    return {
        "app.kubernetes.io/part-of": "plinth",
        "app.kubernetes.io/instance": release,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/version": "0.1.0",
        "helm.sh/chart": "plinth-0.1.0",
    }


def workload(kind: str, component: str, replicas: int, release: str = "plinth") -> Json:
    own = labels(component, release)
    container = {"name": component, "image": "registry.example/plinth/cpu:0.1.0"}
    pod_spec: Json = {"containers": [container]}
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": own},
        "template": {"metadata": {"labels": own}, "spec": pod_spec},
    }
    if component in STAGES:
        claim = {"claimName": f"{release}-store"}
        pod_spec["volumes"] = [{"name": "store", "persistentVolumeClaim": claim}]
    if component == "redis":
        wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Gi"}}}
        spec["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": wanted}]
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"labels": own}, "spec": spec}


def pod(component: str, ip: str, node: str = "node-1", *, ready: bool = True, **spec: Any) -> Json:
    name = component if component in {"gateway", "redis"} else "ray"
    image = f"registry.example/plinth/{'gateway' if name == 'gateway' else 'cpu'}:0.1.0"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": labels(component)},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": name, "image": image}],
            **spec,
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": name, "restartCount": 0, "state": {"running": {}}}],
        },
    }


def static_release(kube: Cluster, release: str = "plinth") -> None:
    """ray.mode=static: two gateways, two shards, one pod of each other stage, Redis."""
    kube.put(f"{APPS}/deployments/{release}-gateway", workload("Deployment", "gateway", 2, release))
    for component in ("head", "redis", *STAGES):
        count = 2 if component == "inference" else 1
        kube.put(
            f"{APPS}/statefulsets/{release}-{component}",
            workload("StatefulSet", component, count, release),
        )
    config = {
        "kind": "ConfigMap",
        "metadata": {
            "labels": labels("config", release),
            "annotations": {
                "plinth.dev/redis-schema": "1",
                "plinth.dev/redis": f"{release}-redis:6379/1",
            },
        },
        "data": {"plinth.yaml": "gateway: {port: 8080}\n"},
    }
    kube.put(f"{CORE}/configmaps/{release}-config", config)


def warning(kind: str, name: str, reason: str, message: str, when: str = "") -> Json:
    """An event of type Warning about an object."""
    return {
        "kind": "Event",
        "type": "Warning",
        "reason": reason,
        "involvedObject": {"kind": kind, "name": name},
        "message": message,
        "lastTimestamp": when or "2026-01-01T00:00:00Z",
    }


def pod_address(kube: KubeApi, path: str) -> str:
    return str(kube.objects[path]["status"]["podIP"])


def static_pods(kube: Cluster) -> None:
    """All of its pods, ready, on two nodes."""
    kube.put(f"{CORE}/pods/plinth-gateway-1", pod("gateway", "10.0.0.1"))
    kube.put(f"{CORE}/pods/plinth-gateway-2", pod("gateway", "10.0.0.2", "node-2"))
    for number, component in enumerate(("head", "redis", *STAGES)):
        path = f"{CORE}/pods/plinth-{component}-0"
        kube.put(path, pod(component, f"10.0.1.{number}"))
    kube.put(f"{CORE}/pods/plinth-inference-1", pod("inference", "10.0.2.1", "node-2"))


def ray_release(kube: Cluster, *, autoscaler: bool = True) -> None:
    """ray.mode=rayservice, served by one Ray cluster."""
    kube.put(f"{APPS}/deployments/plinth-gateway", workload("Deployment", "gateway", 2))
    groups = [
        {
            "groupName": name,
            "replicas": 2 if name == "inference" else 1,
            "minReplicas": 2 if name == "inference" else 1,
            "maxReplicas": 4 if name == "inference" else 2,
            "template": {"spec": {"containers": [{"name": "ray", "image": "x"}]}},
        }
        for name in STAGES
    ]
    config = {"enableInTreeAutoscaling": autoscaler, "workerGroupSpecs": groups}
    applications = [
        {
            "name": name,
            "args": {"name": name},
            "deployments": [
                {"name": name, "autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}
            ],
        }
        for name in STAGES
        if name != "inference"
    ]
    serve = yaml.safe_dump({"proxy_location": "Disabled", "applications": applications})
    status = {
        "serviceStatus": "Running",
        "activeServiceStatus": {
            "rayClusterName": CLUSTER,
            "applicationStatuses": {one["name"]: {"status": "RUNNING"} for one in applications},
        },
    }
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"labels": labels("ray")},
        "spec": {"serveConfigV2": serve, "rayClusterConfig": config},
        "status": status,
    }
    kube.put(f"{RAY}/rayservices/plinth", service)
    kube.put(
        f"{RAY}/rayclusters/{CLUSTER}",
        {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": config},
    )
