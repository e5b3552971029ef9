"""Values that only the API server would refuse, half way: the chart does, with what is right."""

from __future__ import annotations

from typing import Any

import pytest

import rendering

BUCKET: dict[str, Any] = {"store": {"url": "s3://models/plinth"}}
EDGE = {"name": "edge"}


def routed(kind: str, **more: Any) -> dict[str, Any]:
    return {"gateway": {kind: {"enabled": True, "parentRefs": [EDGE], **more}}}


def sized(path: str, kind: str, what: str, amount: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"resources": {kind: {what: amount}}}
    for key in reversed(path.split(".")):
        made = {key: made}
    return made


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nobody reads the bucket": (BUCKET, r"serviceAccount\.workloadIdentity=true"),
    "a queue beside an autoscaler": (
        {"ray": {"labels": {"kueue.x-k8s.io/queue-name": "models"}}},
        r"set ray\.autoscaler\.enabled=false, or leave kueue\.x-k8s\.io/queue-name out",
    ),
    "a stage's disk": (
        sized("stages.inference", "requests", "ephemeral-storage", "100Gi"),
        r"requests\.ephemeral-storage of inference is 100Gi, above its limit of 60Gi",
    ),
    "Redis' memory": (
        sized("redis", "requests", "memory", 1 << 40),
        "requests.memory of redis is 1099511627776, above its limit of ",
    ),
    "a head's processors": (
        sized("head", "limits", "cpu", "10m"),
        "requests.cpu of head is .*, above its limit of 10m",
    ),
    "a limit's unit": (routed("httpRoute", timeouts={"request": "ten"}), "timeouts"),
    "a limit's name": (routed("httpRoute", timeouts={"requst": "0s"}), "requst"),
    "an address for a host": (
        routed("httpRoute", hostnames=["10.0.0.1"]),
        "gateway.httpRoute.hostnames has 10.0.0.1: Gateway API takes names there",
    ),
    "a Gateway twice": (
        routed("grpcRoute", parentRefs=[EDGE, {**EDGE, "namespace": rendering.NAMESPACE}]),
        "gateway.grpcRoute.parentRefs names edge twice",
    ),
    "a Gateway and its section": (
        routed("httpRoute", parentRefs=[EDGE, {**EDGE, "sectionName": "https"}]),
        "gateway.httpRoute.parentRefs names edge twice",
    ),
    "a name of no Service": ({"nameOverride": "demo.llm"}, "Set fullnameOverride to such a name"),
    "an account of a digit": (
        {"serviceAccount": {"create": False, "name": "1plinth"}},
        'the service account is called "1plinth".*Set serviceAccount.name',
    ),
}
TAKEN: dict[str, dict[str, Any]] = {
    "an identity without annotations": {**BUCKET, "serviceAccount": {"workloadIdentity": True}},
    "a queue": {
        "ray": {
            "labels": {"kueue.x-k8s.io/queue-name": "models"},
            "autoscaler": {"enabled": False},
        }
    },
    "as much as the limit": sized("stages.inference", "requests", "ephemeral-storage", "61440Mi"),
    "limits of a route": routed("httpRoute", timeouts={"request": "1h30m", "backendRequest": "0s"}),
    "two sections": routed(
        "httpRoute",
        parentRefs=[{**EDGE, "sectionName": "http"}, {**EDGE, "sectionName": "https"}],
    ),
}
LABELLED = (
    "commonLabels",
    "defaults.podLabels",
    "defaults.workloadLabels",
    "defaults.nodeSelector",
    "ray.labels",
    "redis.podLabels",
    "redis.nodeSelector",
    "stages.reward.podLabels",
    "tests.podLabels",
    "monitoring.podMonitor.labels",
    "monitoring.rules.labels",
)


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_api_would_refuse_is_refused(case: str, any_helm: rendering.Helm) -> None:
    values, told = REFUSED[case]
    with pytest.raises(rendering.Refused, match=told):
        any_helm.render(values)


@pytest.mark.parametrize("case", TAKEN)
def test_what_it_takes_is_taken(case: str, any_helm: rendering.Helm) -> None:
    any_helm.render(TAKEN[case])


@pytest.mark.parametrize("path", LABELLED)
def test_labels_are_such_as_kubernetes_takes(path: str, any_helm: rendering.Helm) -> None:
    for wrong in ({"team": "a" * 64}, {"team": "-a"}, {"a b": "c"}, {"Example.com/team": "a"}):
        values: Any = wrong
        for key in reversed(path.split(".")):
            values = {key: values}
        with pytest.raises(rendering.Refused, match=path):
            any_helm.render(values)


@pytest.mark.parametrize("mode", ["static", "rayservice"])
def test_a_release_that_begins_with_a_digit(
    mode: str, any_helm: rendering.Helm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helm takes such a name, a Service does not."""
    monkeypatch.setattr(rendering, "RELEASE", "1plinth")
    values = {"ray": {"mode": mode}}
    with pytest.raises(rendering.Refused, match=r"would be called 1plinth.*Set fullnameOverride"):
        any_helm.render(values)
    assert "name: llm-gateway" in any_helm.render({**values, "fullnameOverride": "llm"})
