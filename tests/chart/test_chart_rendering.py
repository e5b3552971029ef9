"""What is rendered: the same by both Helms, and what Ray's own parsers read in it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import check
import rendering
from kinds import NEWEST, OLDEST
from plinth.shared.settings import Settings
from release import Release
from running import settings_of

STATIC: dict[str, Any] = {"ray": {"mode": "static"}}
SCALER = "HorizontalPodAutoscaler"


def test_both_helms_and_both_kubernetes_render_the_same() -> None:
    helms = rendering.engines()
    if len(helms) < 2:
        pytest.skip("one Helm is not installed here; `make chart` gets both")
    for name, values in rendering.cases().items():
        texts = [helm.render(values, kube=kube) for helm in helms for kube in (OLDEST, NEWEST)]
        made = [check._comparable(text) for text in texts]
        assert all(one == made[0] for one in made), name


def release(helm: rendering.Helm, values: dict[str, Any]) -> Release:
    return Release(rendering.documents(helm.render(values)))


def test_a_changed_setting_restarts_what_reads_it(any_helm: rendering.Helm) -> None:
    before, after = (
        release(any_helm, {**STATIC, "config": {"log_level": level}}) for level in ("info", "debug")
    )
    for old, new in zip(before.pods, after.pods, strict=True):
        if old.component in {"redis"} or old.labels.get("plinth.dev/trial"):
            continue
        assert old.annotations["checksum/config"] != new.annotations["checksum/config"], old.owner


def test_a_changed_stage_reaches_the_heads_applications(any_helm: rendering.Helm) -> None:
    before, after = (
        release(any_helm, {**STATIC, "stages": {"reward": {"pods": 2, "replicas": count}}})
        for count in (1, 2)
    )
    old, new = (next(p for p in one.pods if p.component == "head") for one in (before, after))
    assert old.annotations["checksum/applications"] != new.annotations["checksum/applications"]


def test_large_numbers_stay_whole(any_helm: rendering.Helm) -> None:
    gpu = yaml.safe_load((rendering.CHART / "values-gpu.yaml").read_text())
    found = settings_of(release(any_helm, gpu), "inference")
    settings = Settings(engine=found["engine"])
    assert settings.engine.kv_cache_bytes == 17_179_869_184


def test_a_spare_is_ready_as_a_node_and_a_full_stage_as_itself(any_helm: rendering.Helm) -> None:
    """A pod without a replica would otherwise never be ready, and stop every rollout."""

    def asked(**stage: Any) -> str:
        values = {**STATIC, "stages": {"reward": stage}}
        (pod,) = [p for p in release(any_helm, values).pods if p.component == "reward"]
        return pod.main["readinessProbe"]["grpc"]["service"]

    assert (asked(pods=1), asked(pods=2)) == ("plinth.v1.RewardService", "")
    # Serve may take the replica of a pod away that its autoscaler has not.
    assert asked(autoscaling={"enabled": True}) == ""


def test_a_stage_of_static_pods_is_as_large_as_serve_wants(any_helm: rendering.Helm) -> None:
    stages = {
        "reward": {"maxPods": 3, "autoscaling": {"enabled": True, "maxReplicas": 3}},
        "inference": {"pods": 2, "maxPods": 16, "autoscaling": {"enabled": True}},
    }
    found = release(any_helm, {**STATIC, "stages": stages})
    scalers = {one["spec"]["scaleTargetRef"]["name"]: one for one in found.of(SCALER)}
    assert {name.rpartition("-")[2] for name in scalers} == set(stages)
    for name, scaler in scalers.items():
        target, spec = found.named("StatefulSet", name), scaler["spec"]
        assert target is not None
        assert "replicas" not in target["spec"]
        stage = name.rpartition("-")[2]
        assert (spec["minReplicas"], spec["maxReplicas"]) == ((1, 3), (2, 16))[stage != "reward"]
        # Of ten pods one too few is within Kubernetes' tolerance of a tenth, by 0.9 it is not.
        each = spec["metrics"][0]["object"]["target"]["averageValue"]
        per_pod = {"1": 1.0, "900m": 0.9}[each]
        for pods in range(1, spec["maxReplicas"]):
            assert (pods + 1) / (per_pod * pods) > 1.1
    assert release(any_helm, STATIC).of(SCALER) == []


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_a_number_of_replicas_is_no_new_code(any_helm: rendering.Helm) -> None:
    """Serve replaces all replicas of an application whose arguments changed."""
    deploy = pytest.importorskip("ray.serve._private.deploy_utils")
    schema = pytest.importorskip("ray.serve.schema")

    def version(**reward: Any) -> tuple[str, dict[str, Any]]:
        (service,) = release(any_helm, {"stages": {"reward": reward}}).of("RayService")
        whole = schema.ServeDeploySchema(**yaml.safe_load(service["spec"]["serveConfigV2"]))
        (one,) = [one for one in whole.applications if one.name == "reward"]
        return deploy.get_app_code_version(one), one.deployments[0].autoscaling_config

    one, bounds = version()
    two, more = version(
        pods=2, replicas=2, autoscaling={"enabled": True, "maxReplicas": 9}, maxPods=9
    )
    assert one == two
    assert (bounds["min_replicas"], bounds["max_replicas"]) == (1, 1)
    assert (more["min_replicas"], more["max_replicas"]) == (2, 9)


@pytest.mark.parametrize("mode", ["rayservice", "static"])
def test_a_number_of_replicas_replaces_no_pod(any_helm: rendering.Helm, mode: str) -> None:
    """Of the head alone, whose second container reads it. A RayService whose pods differ would be
    made anew, whole."""

    def pods(replicas: int) -> dict[str, Any]:
        stages = {"tokenizer": {"pods": 4, "maxPods": 4, "replicas": replicas}}
        # Each rendering without a cluster would make words of its own for a Secret of the chart's.
        values = {"ray": {"mode": mode}, "stages": stages, "secrets": {"existingSecret": "own"}}
        found = release(any_helm, values).pods
        made = {one.owner: [one.labels, one.annotations, one.spec] for one in found}
        return {owner: one for owner, one in made.items() if not owner.endswith("-head")}

    assert pods(2) == pods(3)


def test_two_releases_share_no_name(any_helm: rendering.Helm) -> None:
    def names(release_name: str) -> set[tuple[str, str]]:
        made = any_helm.render({**STATIC, "fullnameOverride": release_name})
        return {(d["kind"], d["metadata"]["name"]) for d in rendering.documents(made)}

    assert not names("one") & names("two")


def test_what_a_digest_pins_is_pinned(any_helm: rendering.Helm) -> None:
    digest = "sha256:" + "1" * 64
    values = {
        **STATIC,
        "images": {"cpu": {"digest": digest}},
        "stages": {"reward": {"image": {"repository": "own/reward", "tag": "3"}}},
    }
    images = {pod.component: pod.main["image"] for pod in release(any_helm, values).pods}
    assert images["tokenizer"] == f"docker.io/plinth/cpu@{digest}"
    assert images["reward"] == "docker.io/own/reward:3", "a tag of its own wins over all"
    assert images["gateway"] == "docker.io/plinth/gateway:0.1.0"


def test_commands_are_rays_own(any_helm: rendering.Helm) -> None:
    """Every option of `ray start`, ours and those that KubeRay makes of rayStartParams."""
    scripts = pytest.importorskip("ray.scripts.scripts")
    for pod in release(any_helm, STATIC).ray_pods:
        command = pod.main["command"]
        assert command[:2] == ["ray", "start"]
        scripts.start.make_context("start", list(command[2:]), resilient_parsing=False)
    (service,) = release(any_helm, {}).of("RayService")
    cluster = service["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        params = group["rayStartParams"]
        flags = [
            f"--{k}" if v == "true" else f"--{k}={v.strip(chr(39))}" for k, v in params.items()
        ]
        scripts.start.make_context("start", [*flags, "--block"])


def test_a_static_head_tells_ray_the_password_of_redis(any_helm: rendering.Helm) -> None:
    """`ray start` has it from its options alone; without it the head ends at once."""
    outside = {"enabled": False, "external": {"host": "redis.example", "username": "plinth"}}
    for values, wanted in (
        (STATIC, {"--redis-password=$(REDIS_AUTH)"}),
        (
            {**STATIC, "redis": outside},
            {"--redis-password=$(REDIS_AUTH)", "--redis-username=plinth"},
        ),
        ({"ray": {"mode": "static", "gcsFaultTolerance": False}}, set()),
    ):
        (head,) = [pod for pod in release(any_helm, values).pods if pod.component == "head"]
        assert {word for word in head.main["command"] if "--redis" in word} == wanted
        names = [variable["name"] for variable in head.main["env"]]
        assert ("RAY_REDIS_ADDRESS" in names) == bool(wanted)
        assert not wanted or "REDIS_AUTH" in names


def test_rays_autoscaler_reads_the_groups_as_meant(any_helm: rendering.Helm) -> None:
    """Its own parser of a RayCluster: what each group offers, and workers from zero."""
    config = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    gpu = yaml.safe_load((rendering.CHART / "values-gpu.yaml").read_text())
    (service,) = release(any_helm, gpu).of("RayService")
    cluster = {"metadata": {"name": "c", "namespace": "models"}}
    cluster["spec"] = service["spec"]["rayClusterConfig"]
    found = config._derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    workers = found["trainer-workers"]
    assert (workers["min_workers"], workers["max_workers"]) == (0, 8)
    assert workers["resources"]["plinth/train-worker"] == 1
    assert workers["resources"]["GPU"] == 1
    assert found["inference"]["resources"]["plinth/inference"] == 1
    assert found["headgroup"]["resources"]["CPU"] == 0


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_serve_takes_the_applications(any_helm: rendering.Helm) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    (service,) = release(any_helm, {}).of("RayService")
    found = schema.ServeDeploySchema.model_validate(
        yaml.safe_load(service["spec"]["serveConfigV2"])
    )
    assert {one.name for one in found.applications} == {
        *("tokenizer", "trainer", "reward", "coordinator", "reconciler")
    }
    assert all(one.route_prefix is None for one in found.applications)
