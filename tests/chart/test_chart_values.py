"""Values: what is refused, with the path and advice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from test_chart_refusals import REFUSED

import rendering
import values_readme
import values_schema
from plinth.shared import redis_keys

STATIC: dict[str, Any] = {"ray": {"mode": "static"}}
WRONG_BY_SCHEMA = {
    "a key": ({"stages": {"inference": {"podz": 2}}}, "podz"),
    "a type": ({"gateway": {"replicas": "two"}}, "gateway"),
    "a setting": ({"config": {"engine": {"devize": "cpu"}}}, "devize"),
    "a setting's type": ({"config": {"engine": {"block_size": "16"}}}, "block_size"),
    "a setting that the chart makes": ({"config": {"stage_port": 1}}, "stage_port"),
    "a gateway without keys": ({"config": {"gateway": {"auth": "off"}}}, "auth"),
    "TLS that probes can't speak": (
        {"config": {"gateway": {"tls": {"certificate": "/a", "key": "/b"}}}},
        "tls",
    ),
    "a mode": ({"ray": {"mode": "operator"}}, "mode"),
    "a digest": ({"images": {"cpu": {"digest": "latest"}}}, "digest"),
    "a store": ({"store": {"url": "file:///x"}}, "url"),
    "a stage": ({"stages": {"prompting": {}}}, "prompting"),
    "a scale of what has none": (
        {"stages": {"tokenizer": {"autoscaling": {"enabled": True}}}},
        "autoscaling",
    ),
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
    "annotations of somebody else's account": (
        {"serviceAccount": {"create": False, "name": "own", "annotations": {"role": "r"}}},
        "leave serviceAccount.annotations empty",
    ),
    "an account that KubeRay renames": (
        {"serviceAccount": {"name": "a" * 51}},
        "KubeRay takes at most 50 characters of the head's account",
    ),
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
    "scraped by nobody": (
        {"monitoring": {"serviceMonitor": {"enabled": True}}},
        "networkPolicy.metrics.from lets nobody in",
    ),
    "asked by nobody": (
        {"monitoring": {"podMonitor": {"enabled": True}}},
        "monitoring.podMonitor.enabled scrapes the pods",
    ),
    "scraped twice": (
        {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
        "Enable one",
    ),
    "a cache beyond the disk": ({"cache": {"sizeLimit": "100Gi"}}, "Raise the one above the other"),
    "labels of the chart's own": (
        {"tests": {"podLabels": {"plinth.dev/ray-node": "true"}}},
        "podLabels of tests set plinth.dev/ray-node",
    ),
    "two routes of one host": (
        {
            "gateway": {
                kind: {"enabled": True, "parentRefs": [{"name": "edge"}]}
                for kind in ("httpRoute", "grpcRoute")
            }
        },
        "share a host (any) on one listener of edge",
    ),
    "a route of nobody": (
        {"gateway": {"grpcRoute": {"enabled": True}}},
        "needs gateway.grpcRoute.parentRefs",
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
    "pods that nobody makes": (
        {
            "ray": {"autoscaler": {"enabled": False}},
            "stages": {"inference": {"autoscaling": {"enabled": True}}},
        },
        "set ray.autoscaler.enabled=true",
    ),
    "a scale without room": (
        {"stages": {"inference": {"pods": 4, "autoscaling": {"enabled": True}}}},
        "raise stages.inference.maxPods (4) above stages.inference.pods (4)",
    ),
    "a stage's scale of nothing": (
        {"stages": {"reward": {"autoscaling": {"enabled": True, "maxReplicas": 1}}}},
        "stages.reward.replicas 1 already",
    ),
    "a scale beyond its pods": (
        {"stages": {"trainer": {"autoscaling": {"enabled": True, "maxReplicas": 3}}}},
        "raise stages.trainer.maxPods",
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


def test_an_account_of_ones_own_is_an_identity(any_helm: rendering.Helm) -> None:
    """Whoever names it has annotated it, or linked it to a role without (EKS Pod Identity)."""
    values = {"store": {"url": "s3://bucket"}, "serviceAccount": {"create": False, "name": "own"}}
    assert "serviceAccountName: own" in any_helm.render(values)


@pytest.mark.parametrize("what", WRONG_TOGETHER)
def test_values_that_do_not_fit_are_refused_with_advice(what: str, helm: rendering.Helm) -> None:
    values, told = WRONG_TOGETHER[what]
    with pytest.raises(rendering.Refused) as refused:
        helm.render(values)
    assert told in str(refused.value).replace("\n", " ")


def test_every_refusal_of_the_chart_is_tried(any_helm: rendering.Helm) -> None:
    """Each `fail` of the templates is reached by a case above, or by a cluster's state below.
    Those of volumes and places are tried in test_chart_immutable.py, those of what is being
    deleted in test_chart_cluster_state.py."""
    folder = rendering.CHART / "templates"
    names = ("validate.yaml", "validate-routes.yaml")
    text = "".join((folder / name).read_text() for name in names)
    messages = re.findall(r'fail (?:\(printf )?"((?:[^"\\]|\\.)*)"', text)
    assert len(messages) > 20
    cases = [*WRONG_TOGETHER.values(), *REFUSED.values()]
    told = " ".join(_refusal(any_helm, values) for values, _ in cases)
    by_cluster = (
        "this release's Redis holds",
        "the release ",
        "cache.type is hostPath",
    )
    for message in messages:
        longest = max(re.split(r"%[sdq]", message), key=len)
        assert longest in told or message.startswith(by_cluster), message


def _refusal(helm: rendering.Helm, values: dict[str, Any]) -> str:
    try:
        helm.render(values)
    except rendering.Refused as refused:
        return str(refused)
    return ""


def test_what_the_chart_says_of_redis_keys_is_what_the_code_has() -> None:
    chart = yaml.safe_load((rendering.CHART / "Chart.yaml").read_text())
    assert chart["annotations"]["plinth.dev/redis-schema"] == str(redis_keys.SCHEMA)


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
