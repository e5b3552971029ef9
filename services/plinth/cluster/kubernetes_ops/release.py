"""Which release of the chart is meant, and what it is made of, by the chart's own labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound

PART_OF = "app.kubernetes.io/part-of=plinth"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
RESTART_WORDS = ("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "OOMKilled", "Error")


@dataclass(frozen=True)
class Release:
    """One installed release. fullname: what its objects are called after. mode: "static" or
    "rayservice". rayservice: the object, {} in static mode. sets: StatefulSets by component."""

    name: str
    fullname: str
    namespace: str
    version: str
    mode: str
    gateway: Json
    sets: dict[str, Json] = field(default_factory=dict)
    rayservice: Json = field(default_factory=dict)

    @property
    def selector(self) -> str:
        return f"{PART_OF},{INSTANCE}={self.name}"

    def of(self, component: str) -> str:
        """Selects a component's pods."""
        return f"{self.selector},{COMPONENT}={component}"

    @property
    def groups(self) -> dict[str, Json]:
        """Worker groups of the RayService by name."""
        config = self.rayservice.get("spec", {}).get("rayClusterConfig", {})
        return {group["groupName"]: group for group in config.get("workerGroupSpecs", [])}

    @property
    def templates(self) -> list[tuple[str, Json]]:
        """(component, pod template) of everything that makes pods, whether or not it could."""
        found = [("gateway", self.gateway["spec"]["template"])]
        found += [(name, one["spec"]["template"]) for name, one in sorted(self.sets.items())]
        config = self.rayservice.get("spec", {}).get("rayClusterConfig", {})
        if "template" in config.get("headGroupSpec", {}):
            found.append(("head", config["headGroupSpec"]["template"]))
        return found + [(name, group["template"]) for name, group in sorted(self.groups.items())]

    @property
    def claims(self) -> set[str]:
        """Names of the volume claims that its pods mount."""
        found = {
            str(volume["persistentVolumeClaim"]["claimName"])
            for _, template in self.templates
            for volume in template["spec"].get("volumes") or []
            if "persistentVolumeClaim" in volume
        }
        for one in self.sets.values():
            for claim in one["spec"].get("volumeClaimTemplates") or []:
                name = f"{claim['metadata']['name']}-{one['metadata']['name']}"
                found |= {f"{name}-{index}" for index in range(one["spec"].get("replicas", 1))}
        return found

    @property
    def ray_clusters(self) -> list[str]:
        """Names of KubeRay's clusters for it: the one that serves, the one that comes."""
        status = self.rayservice.get("status", {})
        stages = ("activeServiceStatus", "pendingServiceStatus")
        names = [(status.get(stage) or {}).get("rayClusterName") for stage in stages]
        return [str(name) for name in names if name]

    def wanted(self, component: str) -> int:
        """How many pods a component is to have, at least."""
        if component == "gateway":
            return int(self.gateway["spec"].get("replicas", 1))
        if component in self.sets:
            return int(self.sets[component]["spec"].get("replicas", 1))
        if component == "head":
            return 1
        # Beyond the least of them Ray's autoscaler decides, in the cluster that it made.
        config = self.rayservice.get("spec", {}).get("rayClusterConfig", {})
        key = "minReplicas" if config.get("enableInTreeAutoscaling") else "replicas"
        return int(self.groups.get(component, {}).get(key) or 0)

    @property
    def components(self) -> list[str]:
        """Gateway, head, stages, Redis, in that order."""
        stages = set(self.groups) | (set(self.sets) - {"head", "redis"})
        own = ["redis"] if "redis" in self.sets else []
        return ["gateway", "head", *sorted(stages), *own]

    @property
    def active_cluster(self) -> str:
        """Name of the RayCluster that serves. FailedPrecondition while there is none."""
        active = self.rayservice.get("status", {}).get("activeServiceStatus", {})
        if not (name := active.get("rayClusterName")):
            raise FailedPrecondition(
                f"RayService {self.fullname} has no active Ray cluster yet; see `plinth k8s doctor`"
            )
        return str(name)

    def check_component(self, component: str) -> str:
        """`component` if there is one of that name; InvalidArgument names those there are."""
        if component not in self.components:
            raise InvalidArgument(
                f"the release {self.name} has no {component!r}; it has: "
                f"{', '.join(self.components)}",
                field="stage",
            )
        return component


def releases(api: Api) -> dict[str, Json]:
    """The gateways' Deployments in the namespace by release."""
    found = api.items("list deployments", f"{PART_OF},{COMPONENT}=gateway")
    return {one["metadata"]["labels"][INSTANCE]: one for one in found}


def find(api: Api, name: str | None = None) -> Release:
    """The release called `name`, or the only one. NotFound, InvalidArgument say which there are."""
    there = releases(api)
    if not there:
        raise NotFound(
            f"no release of the chart in namespace {api.namespace}: `helm list -A` shows where it "
            "is (--namespace), `plinth k8s doctor` whether it can be installed",
            reason="NO_RELEASE",
        )
    known = ", ".join(sorted(there))
    if name is None and len(there) > 1:
        raise InvalidArgument(
            f"there are several releases in {api.namespace}: {known}; say --release NAME",
            field="release",
        )
    name = name or next(iter(there))
    if name not in there:
        raise NotFound(
            f"no release {name!r} in namespace {api.namespace}; there are: {known}",
            reason="NO_RELEASE",
            field="release",
        )
    gateway = there[name]
    fullname = gateway["metadata"]["name"].removesuffix("-gateway")
    sets = {
        one["metadata"]["labels"][COMPONENT]: one
        for one in api.items("list statefulsets", f"{PART_OF},{INSTANCE}={name}")
    }
    static = "head" in sets
    return Release(
        name=name,
        fullname=fullname,
        namespace=api.namespace,
        version=gateway["metadata"]["labels"].get("app.kubernetes.io/version", ""),
        mode="static" if static else "rayservice",
        gateway=gateway,
        sets=sets,
        rayservice={} if static else _rayservice(api, fullname),
    )


def _rayservice(api: Api, fullname: str) -> Json:
    try:
        return api.call("get rayservice", name=fullname)
    except NotFound as error:
        raise FailedPrecondition(
            f"the release has neither a StatefulSet {fullname}-head nor a RayService {fullname}: "
            f"is KubeRay installed? ({error.message})",
            reason="NO_RAY",
        ) from error


def component_of(pod: Json) -> str:
    return str(pod["metadata"].get("labels", {}).get(COMPONENT, ""))


def container_of(component: str) -> str:
    """The main container of a component's pods."""
    return component if component in {"gateway", "redis"} else "ray"


def is_ready(pod: Json) -> bool:
    """Whether the pod serves now."""
    conditions = pod.get("status", {}).get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def trouble(pod: Json) -> str:
    """Why a pod is not well, in a few words; empty if nothing is wrong with it."""
    status = pod.get("status", {})
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')}"
    for container in [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]:
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in RESTART_WORDS or "Err" in waiting.get("reason", ""):
            return _told(container, waiting)
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("exitCode"):
            return _told(container, ended)
    if status.get("phase") == "Failed":
        return f"Failed: {status.get('reason', '')} {status.get('message', '')}".strip()
    return ""


def last_end(pod: Json) -> str:
    """How a container of the pod ended last; empty if none did."""
    for container in pod.get("status", {}).get("containerStatuses") or []:
        ended: dict[str, Any] = container.get("lastState", {}).get("terminated") or {}
        if ended:
            return _told(container, ended)
    return ""


def restarts(pod: Json) -> int:
    return sum(
        int(container.get("restartCount", 0))
        for container in pod.get("status", {}).get("containerStatuses") or []
    )


def _told(container: Json, state: Json) -> str:
    code = f" (exit code {state['exitCode']})" if state.get("exitCode") else ""
    message = f": {state['message'].strip()[:160]}" if state.get("message") else ""
    return f"{container['name']} {state.get('reason', '')}{code}{message}".strip()
