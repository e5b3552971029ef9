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

    def asked(pods: int) -> str:
        values = {**STATIC, "stages": {"tokenizer": {"pods": pods}}}
        (pod,) = [p for p in release(any_helm, values).pods if p.component == "tokenizer"]
        return pod.main["readinessProbe"]["grpc"]["service"]

    assert (asked(1), asked(2)) == ("plinth.v1.TokenizerService", "")


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
