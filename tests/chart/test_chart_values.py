"""Values: what is refused, with the path and advice; what is rendered, the same by both Helms."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

import check
import rendering
import values_readme
import values_schema
from kinds import NEWEST, OLDEST
from plinth.shared import keys
from plinth.shared.settings import Settings
from release import Release
from running import settings_of

STATIC: dict[str, Any] = {"ray": {"mode": "static"}}
WRONG_BY_SCHEMA = {
    "a key": ({"stages": {"inference": {"podz": 2}}}, "podz"),
    "a type": ({"gateway": {"replicas": "two"}}, "gateway"),
    "a setting": ({"config": {"engine": {"devize": "cpu"}}}, "devize"),
    "a setting's type": ({"config": {"engine": {"block_size": "16"}}}, "block_size"),
    "a setting that the chart makes": ({"config": {"stage_port": 1}}, "stage_port"),
    "an open door": ({"config": {"gateway": {"auth": "off"}}}, "auth"),
    "a mode": ({"ray": {"mode": "operator"}}, "mode"),
    "a digest": ({"images": {"cpu": {"digest": "latest"}}}, "digest"),
    "a store": ({"store": {"url": "file:///x"}}, "url"),
    "a stage": ({"stages": {"prompting": {}}}, "prompting"),
    "too many GPUs": ({"stages": {"inference": {"gpu": {"count": 100}}}}, "count"),
}
WRONG_TOGETHER = {
    "two Redis": ({"redis": {"external": {"host": "r"}}}, "set redis.enabled=false"),
    "no Redis": ({"redis": {"enabled": False}}, "name a Redis"),
    "Ray's database": ({"redis": {"database": 0}}, "set redis.database to 1 to 15"),
    "a volume of one node": (
        {"store": {"persistence": {"accessModes": ["ReadWriteOnce"]}}},
        "store.persistence.singleNode=true",
    ),
    "a bucket of nobody": ({"store": {"url": "s3://bucket"}}, "set store.s3.existingSecret"),
    "Google's bucket": ({"store": {"url": "gs://bucket"}}, "set store.gcs.existingSecret"),
    "GPUs where there are none": (
        {"config": {"engine": {"device": "cuda"}}},
        "Set stages.inference.gpu.count=1, or config.engine.device=cpu",
    ),
    "GPUs for nothing": (
        {"stages": {"reward": {"gpu": {"count": 1}}}},
        "Set config.reward.device=cuda, or stages.reward.gpu.count=0",
    ),
    "GPUs of a stage without": (
        {"stages": {"tokenizer": {"gpu": {"count": 1}}}},
        "does nothing with them",
    ),
    "GPUs of training workers": (
        {
            "config": {"trainer": {"device": "cuda"}},
            "trainerWorkers": {"enabled": True, "pods": 1},
            "jobs": {"persistence": {"enabled": True}},
        },
        "Set trainerWorkers.gpu.count=1",
    ),
    "more replicas than pods": (
        {**STATIC, "stages": {"reward": {"replicas": 2}}},
        "raise stages.reward.pods",
    ),
    "more pods than may be": (
        {"stages": {"reward": {"pods": 9}}},
        "more than stages.reward.maxPods",
    ),
    "more workers than may be": (
        {
            "trainerWorkers": {"enabled": True, "pods": 9},
            "jobs": {"persistence": {"enabled": True}},
        },
        "more than trainerWorkers.maxPods",
    ),
    "a budget of all": (
        {"gateway": {"pdb": {"minAvailable": 2}}},
        "lower pdb.minAvailable",
    ),
    "workers without folders": (
        {"trainerWorkers": {"enabled": True}},
        "needs jobs.persistence.enabled",
    ),
    "workers that never come": (
        {**STATIC, "trainerWorkers": {"enabled": True}, "jobs": {"persistence": {"enabled": True}}},
        "nothing would raise it",
    ),
    "an end before the answer's": (
        {"config": {"gateway": {"request_deadline_s": 3600}}},
        "Set it above 3600",
    ),
    "a scale of nothing": (
        {"gateway": {"autoscaling": {"enabled": True, "targetCPUUtilization": 0}}},
        "has no target",
    ),
    "a scale upside down": (
        {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 20}}},
        "more than maxReplicas",
    ),
    "a door without a name": ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host"),
    "TLS of nobody": ({"tls": {"enabled": True}}, "tls.existingSecrets.coordinator is missing"),
    "an issuer without a name": (
        {"tls": {"enabled": True, "certManager": {"enabled": True}}},
        "issuerRef.name",
    ),
    "chaos with one shard": (
        {"tests": {"chaos": {"enabled": True}}, "stages": {"inference": {"pods": 1}}},
        "Set it to 2 or more",
    ),
    "threads of no CPU": (
        {"stages": {"inference": {"resources": {"requests": {"cpu": None}}}}},
        "has no resources.requests.cpu",
    ),
}


@pytest.mark.parametrize("what", WRONG_BY_SCHEMA)
def test_the_schema_refuses_with_the_path(what: str, helm: rendering.Helm) -> None:
    values, told = WRONG_BY_SCHEMA[what]
    with pytest.raises(rendering.Refused, match=told):
        helm.render(values)


@pytest.mark.parametrize("what", WRONG_TOGETHER)
def test_values_that_do_not_fit_are_refused_with_advice(what: str, helm: rendering.Helm) -> None:
    values, told = WRONG_TOGETHER[what]
    with pytest.raises(rendering.Refused) as refused:
        helm.render(values)
    assert told in str(refused.value).replace("\n", " ")


def test_every_refusal_of_the_chart_is_tried(any_helm: rendering.Helm) -> None:
    """Each `fail` of the template is reached by a case above, or by a cluster's state below."""
    text = (rendering.CHART / "templates" / "validate.yaml").read_text()
    messages = re.findall(r'fail (?:\(printf )?"((?:[^"\\]|\\.)*)"', text)
    assert len(messages) > 20
    told = " ".join(_refusal(any_helm, values) for values, _ in WRONG_TOGETHER.values())
    by_cluster = ("this release's Redis holds", "the release ")
    for message in messages:
        longest = max(re.split(r"%[sdq]", message), key=len)
        assert longest in told or message.startswith(by_cluster), message


def _refusal(helm: rendering.Helm, values: dict[str, Any]) -> str:
    try:
        helm.render(values)
    except rendering.Refused as refused:
        return str(refused)
    return ""


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


def test_what_the_chart_says_of_redis_keys_is_what_the_code_has() -> None:
    chart = yaml.safe_load((rendering.CHART / "Chart.yaml").read_text())
    assert chart["annotations"]["plinth.dev/redis-schema"] == str(keys.SCHEMA)


def test_generated_files_are_fresh() -> None:
    assert values_schema.TARGET.read_text() == values_schema.text()
    assert values_readme.TARGET.read_text() == values_readme.text()
    assert values_readme.undocumented() == []


def test_the_schema_knows_every_value() -> None:
    """A value without a place in the schema could never be set."""
    schema = values_schema.build()

    def walk(values: dict[str, Any], node: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in values.items():
            if "properties" not in node:
                return
            if key not in node["properties"]:
                yield f"{path}{key}"
            elif isinstance(value, dict):
                yield from walk(value, node["properties"][key], f"{path}{key}.")

    values = yaml.safe_load((rendering.CHART / "values.yaml").read_text())
    assert list(walk(values, schema, "")) == []


# -- what is in the cluster already -------------------------------------------------------


@contextmanager
def cluster(
    config_maps: list[dict[str, Any]], secrets: dict[str, dict[str, str]] | None = None
) -> Iterator[str]:
    """An API server that knows ConfigMaps and Secrets, as far as Helm's `lookup` asks."""
    resources = [
        {
            "name": name,
            "singularName": "",
            "namespaced": True,
            "kind": kind,
            "verbs": ["get", "list"],
        }
        for name, kind in (("configmaps", "ConfigMap"), ("secrets", "Secret"))
    ]
    base = "/api/v1/namespaces/models"
    answers = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": resources},
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
        f"{base}/configmaps": {"kind": "ConfigMapList", "apiVersion": "v1", "items": config_maps},
    }
    for name, data in (secrets or {}).items():
        metadata = {"name": name, "namespace": "models"}
        secret = {"kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data}
        answers[f"{base}/secrets/{name}"] = secret

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            body = answers.get(urlsplit(self.path).path)
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
            missing |= {"reason": "NotFound", "metadata": {}}
            text = json.dumps(body or missing).encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def rendered_in(url: str, values: dict[str, Any]) -> str:
    """Rendered by Helm 4 with a cluster to look into. HelmError with the chart's refusal."""
    config = pytest.importorskip("helm_python.config", reason="`make chart` installs Helm 4")
    from helm_python import chart

    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }
    with config.Config(
        namespace="models", kubeconfig_content=yaml.safe_dump(kubeconfig)
    ) as connection:
        loaded = chart.Chart.load(str(rendering.CHART))
        made = connection.render(loaded, values, name="demo", namespace="models")
    return "\n".join(made.values())


def config_map(release_name: str, schema: int, redis: str) -> dict[str, Any]:
    """What a release leaves for others to see."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{release_name}-plinth-config",
            "namespace": "models",
            "labels": {
                "app.kubernetes.io/part-of": "plinth",
                "app.kubernetes.io/instance": release_name,
            },
            "annotations": {
                "plinth.dev/redis-schema": str(schema),
                "plinth.dev/redis": redis,
            },
        },
    }


SHARED = {"redis": {"enabled": False, "external": {"host": "redis.example.com"}}}


def test_two_releases_on_one_redis_database_are_refused() -> None:
    there = [config_map("other", 1, "redis.example.com:6379/1")]
    with cluster(there) as url:
        with pytest.raises(Exception, match="two releases would serve each other's queues"):
            rendered_in(url, SHARED)
        apart = rendering.merged(SHARED, {"redis": {"database": 2}})
        assert "redis.example.com:6379/2" in rendered_in(url, apart)


def test_a_downgrade_over_a_newer_schema_is_refused_with_advice() -> None:
    newer = [config_map("demo", 2, "demo-plinth-redis:6379/1")]
    refusal = r"holds schema 2 and this chart .* knows schema 1"
    with cluster(newer) as url, pytest.raises(Exception, match=refusal):
        rendered_in(url, {})
    with cluster([config_map("demo", 1, "demo-plinth-redis:6379/1")]) as url:
        assert "kind: RayService" in rendered_in(url, {})


def test_an_upgrade_keeps_the_secrets_and_an_install_makes_new_ones() -> None:
    kept = {key: f"a2VwdC0{index}" for index, key in enumerate(SECRET_KEYS)}
    with cluster([], {"demo-plinth-secrets": kept}) as url:
        assert secret_of(rendered_in(url, {})) == kept
    with cluster([]) as url:
        first, second = (secret_of(rendered_in(url, {})) for _ in range(2))
        assert all(first[key] != second[key] for key in SECRET_KEYS)
        assert all(len(base64.b64decode(first[key])) == 48 for key in SECRET_KEYS)


SECRET_KEYS = ("cluster-token", "auth_token", "redis-password")


def secret_of(text: str) -> dict[str, str]:
    return {key: re.search(rf"^  {key}: (\S+)$", text, re.MULTILINE)[1] for key in SECRET_KEYS}
