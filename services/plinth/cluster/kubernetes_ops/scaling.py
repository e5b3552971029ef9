"""`plinth k8s scale`: pods of a stage, or shards of a model.

Pods are Kubernetes' business: the scale of a Deployment or StatefulSet; with KubeRay, the worker
group of the Ray cluster that serves and the same group of its RayService, for KubeRay passes
numbers on from the one to the other only when it makes a new cluster. Shards are desired state on
the store, so they go through the gateway and the reconciler follows. Shards last until somebody
changes them; pods until the next `helm upgrade`, whose values say otherwise, for the chart stays
the owner of the number (`owners`). With KubeRay they last as long as the Ray cluster.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from plinth.client import Client
from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.cluster.kubernetes_ops.gateway_client import PAGE, in_coordinator
from plinth.cluster.kubernetes_ops.outcome import CommandOutcome, helm_set, kubectl
from plinth.cluster.kubernetes_ops.owners import AS_US, hand_back, unchanged
from plinth.cluster.kubernetes_ops.release import Release
from plinth.cluster.kubernetes_ops.room import STAGE, check_room, most_shards, served_name
from plinth.shared.deployment_rules import MAX_SHARDS
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound
from plinth.v1 import deployments_pb2

MOST_PODS = 1000
_REPLICAS = ("spec", "replicas")
_RAY_NUMBERS = (("spec", "rayClusterConfig", "workerGroupSpecs"), ("spec", "serveConfigV2"))
_BY_KUBECTL = "# the number is kubectl's own then: Helm 4's next upgrade takes --force-conflicts"
_LASTS_STATIC = "the next helm upgrade or rollback sets what its values say; to keep this number:"
_LASTS_RAY = (
    "it lasts as long as this Ray cluster; the next one has the RayService's number, which a helm "
    "upgrade sets (Helm 3: only one that changes a worker group); to keep this number:"
)


def scale_pods(
    api: Api,
    release: Release,
    component: str,
    pods: int,
    *,
    replicas: int | None = None,
    wanted: Sequence[deployments_pb2.Deployment] = (),
) -> CommandOutcome:
    """Gives a stage `pods` pods. replicas: that Serve shall run of it (KubeRay only). wanted: the
    served models, whose shards inference pods must have room for.

    FailedPrecondition: an autoscaler owns the number, or shards would have no room.
    """
    release.check_component(component)
    if component in {"head", "redis"}:
        raise InvalidArgument(f"{component} is one pod and stays one", field="stage")
    if not 0 <= pods <= MOST_PODS:
        raise InvalidArgument(f"{pods} pods: 0 to {MOST_PODS}", field="pods")
    if component == STAGE:
        check_room(wanted, release, pods=pods)
    if component == "gateway" or release.mode == "static":
        _refuse_autoscaled(api, release, component)
    if component == "gateway":
        outcome = _scale(api, release, "deployment", component, pods)
    elif release.mode == "static":
        if replicas is not None:
            raise FailedPrecondition(
                f"in static mode Serve's replicas stand in a file that the head reads at its "
                f"start: use `{_keep(release, component, pods, replicas)}`"
            )
        outcome = _scale(api, release, "statefulset", component, pods)
    else:
        outcome = _scale_group(api, release, component, pods, replicas)
    outcome.notes.append(
        _LASTS_STATIC if component == "gateway" or release.mode == "static" else _LASTS_RAY
    )
    outcome.notes.append(f"  {_keep(release, component, pods, replicas)}")
    return outcome


def scale_model(release: Release, gateway: Client, name: str, shards: int) -> CommandOutcome:
    """Wants `shards` shards of a served model. NotFound names those that are served."""
    if not 1 <= shards <= MAX_SHARDS:
        raise InvalidArgument(
            f"{shards} shards: 1 to {MAX_SHARDS}; to serve it no more, delete its deployment",
            field="shards",
        )
    deployments = {
        served_name(one): one for one in gateway.deployments.list_deployments(page_size=PAGE)
    }
    if name not in deployments:
        known = ", ".join(sorted(deployments)) or "none"
        raise NotFound(f"no model {name!r} is to be served; there are: {known}", field="model")
    before = deployments[name].spec.shards
    if shards > before:
        asked = deployments_pb2.Deployment()
        asked.CopyFrom(deployments[name])
        asked.spec.shards = shards
        room_for = (deployments | {name: asked}).values()
        check_room(room_for, release, pods=most_shards(release))
    put = gateway.deployments.update_deployment(
        deployments_pb2.Deployment(
            name=deployments[name].name,
            spec=deployments_pb2.DeploymentSpec(shards=shards),
            etag=deployments[name].etag,  # no longer as it was read: Aborted
        ),
        update_mask=["spec.shards"],
    ).spec
    most = f" to {put.max_shards}" if put.max_shards else ""
    outcome = CommandOutcome(
        [f"{name} ({put.artifact}) is to have {put.shards}{most} shards, had {before}"]
    )
    if put.artifact.partition("@")[0] == name:
        words = ("plinth", "models", "serve", put.artifact, "--shards", str(shards))
        outcome.equivalents.append(in_coordinator(release, *words))
    return outcome


def _scale(api: Api, release: Release, kind: str, component: str, pods: int) -> CommandOutcome:
    name = f"{release.fullname}-{component}"

    def change() -> int:
        now = api.call(f"get {kind}", name=name)
        # The version that was read goes along, so that nobody's change is undone unseen.
        version = {"resourceVersion": now["metadata"]["resourceVersion"]}
        body = {"metadata": version, "spec": {"replicas": pods}}
        api.call(f"patch {kind} scale", name=name, query=AS_US, body=body)
        return int(now["spec"].get("replicas", 1))

    before = api.fresh(change)
    outcome = CommandOutcome(
        [f"{kind} {name}: {before} to {pods} pods"],
        [
            kubectl(release.namespace, "scale", f"{kind}/{name}", f"--replicas={pods}"),
            _BY_KUBECTL,
        ],
    )
    if left := hand_back(api, kind, name, [_REPLICAS]):
        outcome.notes.append(left)
    return outcome


def _refuse_autoscaled(api: Api, release: Release, component: str) -> None:
    name = f"{release.fullname}-{component}"
    try:
        scaler = api.call("get autoscaler", name=name)["spec"]
    except NotFound:
        return
    low, high = scaler.get("minReplicas", 1), scaler["maxReplicas"]
    bounds = (f"stages.{component}.pods=N", f"stages.{component}.maxPods=M")
    if component == "gateway":
        bounds = ("gateway.autoscaling.minReplicas=N", "gateway.autoscaling.maxReplicas=M")
    raise FailedPrecondition(
        f"the HorizontalPodAutoscaler {name} keeps the pods of {component} between {low} and "
        f"{high} and would undo this: change its bounds with "
        f"`{helm_set(release.name, release.namespace, bounds)}`",
        reason="AUTOSCALED",
    )


def _scale_group(
    api: Api, release: Release, group: str, pods: int, replicas: int | None
) -> CommandOutcome:
    cluster = release.active_cluster
    sent: dict[str, list[Json]] = {}

    def change_service() -> None:
        found = api.call("get rayservice", name=release.fullname)
        _, patch = _group_patch(found, ("spec", "rayClusterConfig"), group, pods)
        patch += _serve_patch(found, group, pods, replicas)
        sent["rayservice"] = patch
        body = [unchanged(found), *patch]
        api.call("patch rayservice", name=release.fullname, query=AS_US, body=body)

    def change_cluster() -> int:
        found = api.call("get raycluster", name=cluster)
        before, sent["raycluster"] = _group_patch(found, ("spec",), group, pods)
        body = [unchanged(found), *sent["raycluster"]]
        api.call("patch raycluster", name=cluster, query=AS_US, body=body)
        return before

    api.fresh(change_service)
    left = hand_back(api, "rayservice", release.fullname, _RAY_NUMBERS)
    before = api.fresh(change_cluster)
    told = [f"worker group {group} of {cluster}: {before} to {pods} pods"]
    if pods < before and not any(one["path"].endswith("/replicas") for one in sent["raycluster"]):
        told.append("Ray's autoscaler takes pods away once they idle; one with a replica stays")
    if left:
        told.append(left)
    if replicas is not None:
        told.append(f"Serve runs {replicas} replicas of {group}")
    names = {"rayservice": release.fullname, "raycluster": cluster}
    equivalents = [
        kubectl(
            release.namespace,
            *("patch", f"{kind}/{names[kind]}", "--type=json", "-p", json.dumps(patch)),
        )
        for kind, patch in sent.items()
    ]
    return CommandOutcome(told, [*equivalents, _BY_KUBECTL])


def _group_patch(
    found: Json, at: Sequence[str], group: str, pods: int
) -> tuple[int, list[dict[str, Any]]]:
    """(pods before, operations). The list is never replaced as a whole: it holds pod templates."""
    config: Any = found
    for key in at:
        config = config[key]
    groups = config["workerGroupSpecs"]
    index = next((i for i, one in enumerate(groups) if one["groupName"] == group), None)
    if index is None:
        raise FailedPrecondition(
            f"{found['kind']} {found['metadata']['name']} has no worker group {group}: an upgrade "
            "is under way; try again once `plinth k8s status` shows one cluster"
        )
    before = int(groups[index].get("replicas") or 0)
    numbers = {"minReplicas": pods}
    # Where Ray's autoscaler runs, it alone takes pods away, and knows which are idle.
    if pods >= before or not config.get("enableInTreeAutoscaling", False):
        numbers["replicas"] = pods
    if int(groups[index].get("maxReplicas") or 0) < pods:
        numbers["maxReplicas"] = pods
    path = f"/{'/'.join(at)}/workerGroupSpecs/{index}"
    return before, [{"op": "add", "path": f"{path}/{k}", "value": v} for k, v in numbers.items()]


def _serve_patch(found: Json, stage: str, pods: int, replicas: int | None) -> list[Json]:
    """Serve's replicas of a stage, in the RayService; KubeRay applies them in place."""
    config = yaml.safe_load(found["spec"].get("serveConfigV2") or "{}")
    application = next((a for a in config.get("applications", []) if a["name"] == stage), None)
    if application is None:
        if replicas is not None:
            raise InvalidArgument(
                f"{stage} has no replicas of its own: shards belong to models "
                "(`plinth k8s scale model/NAME N`)",
                field="replicas",
            )
        return []
    numbers = _numbers(application)
    least = int(numbers["min_replicas"])
    if replicas is None and least <= pods:
        return []  # the pods beyond them are spares
    if replicas is None or not 1 <= replicas <= pods:
        raise InvalidArgument(
            f"Serve runs {least} replicas of {stage}, one a pod: say --replicas with 1 to {pods}",
            field="replicas",
        )
    # Where their load decides, this is the least of them.
    fixed = numbers["max_replicas"] == least
    numbers["max_replicas"] = replicas if fixed else max(replicas, int(numbers["max_replicas"]))
    numbers["min_replicas"] = replicas
    text = yaml.safe_dump(config, sort_keys=False)
    return [{"op": "add", "path": "/spec/serveConfigV2", "value": text}]


def _numbers(application: Json) -> Json:
    """Where the chart says how many replicas Serve runs: not among the arguments, any change of
    which would replace all of them."""
    try:
        found: Json = application["deployments"][0]["autoscaling_config"]
    except (KeyError, IndexError):
        raise FailedPrecondition(
            f"the chart that is installed says nowhere how many replicas of {application['name']} "
            "there are to be without replacing them: `helm upgrade` to this version first"
        ) from None
    return found


def _keep(release: Release, component: str, pods: int, replicas: int | None) -> str:
    if component == "gateway":
        values = [f"gateway.replicas={pods}"]
    else:
        key = "trainerWorkers" if component == "trainer-workers" else f"stages.{component}"
        values = [f"{key}.pods={pods}"]
        if release.mode == "rayservice" and pods > int(
            release.groups.get(component, {}).get("maxReplicas") or 0
        ):
            values.append(f"{key}.maxPods={pods}")
        if replicas is not None:
            values.append(f"{key}.replicas={replicas}")
    return helm_set(release.name, release.namespace, values)
