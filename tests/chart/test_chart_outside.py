"""What is around a release: what its pods reach outside of it, its way in by Gateway API, what it
takes of a node's disk, who asks its figures. Broken, each is told by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_chart_mutations import BOTH, STATIC, findings, mutated

import rendering
from release import Release

GOOGLE = {
    **BOTH,
    "store": {"url": "gs://models/plinth"},
    "serviceAccount": {"annotations": {"iam.gke.io/gcp-service-account": "a"}},
}
AMAZON = {
    **STATIC,
    "store": {"url": "s3://models/plinth"},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "a"}},
}


ASKED = {
    "ray": {"mode": "static"},
    "networkPolicy": {"metrics": {"from": [{"namespaceSelector": {}}]}},
    "monitoring": {"podMonitor": {"enabled": True}},
}
MUTATIONS = {
    "dns-of-pods-alone": (
        "networkpolicy.yaml",
        "{{- with $policy.egress.dns }}",
        '{{- with list (dict "namespaceSelector" dict) }}',
        BOTH,
        "on its way to NodeLocal DNSCache:53",
    ),
    "dns-without-openshift": (
        "networkpolicy.yaml",
        '"port" 5353 "protocol" "UDP"',
        '"port" 5354 "protocol" "UDP"',
        STATIC,
        "on its way to OpenShift's DNS pods:5353",
    ),
    "no-metadata-server": (
        "networkpolicy.yaml",
        'list "169.254.169.254/32" 80',
        'list "169.254.169.254/32" 81',
        GOOGLE,
        "on its way to GKE's metadata server, 169.254.169.254:80",
    ),
    "no-metadata-server-of-older-nodes": (
        "networkpolicy.yaml",
        '"169.254.169.252/32" 988',
        '"169.254.169.252/32" 989',
        GOOGLE,
        "on its way to GKE's metadata server, 169.254.169.252:988",
    ),
    "no-pod-identity": (
        "networkpolicy.yaml",
        "169.254.170.23/32",
        "169.254.170.24/32",
        AMAZON,
        "on its way to EKS' Pod Identity agent",
    ),
    "the-nodes-own-rights": (
        "networkpolicy.yaml",
        "169.254.170.23/32",
        "169.254.0.0/16",
        AMAZON,
        "ask 169.254.169.254:80 for the node's rights",
    ),
    "a-disk-unbounded": (
        "redis.yaml",
        "{{- toYaml .Values.redis.resources | nindent 12 }}",
        '{{- toYaml (dict "requests" .Values.redis.resources.requests) | nindent 12 }}',
        STATIC,
        "redis has no limits of ephemeral-storage",
    ),
    "a-disk-unasked": (
        "tests/trials.yaml",
        "{{- toYaml $.Values.tests.resources | nindent 8 }}",
        '{{- toYaml (dict "limits" $.Values.tests.resources.limits) | nindent 8 }}',
        BOTH,
        "trial has no requests of ephemeral-storage",
    ),
    "a-cache-beyond-the-limit": (
        "_runtime.tpl",
        'emptyDir: {sizeLimit: {{ include "plinth.quantity" $root.Values.cache.sizeLimit }}}',
        "emptyDir: {sizeLimit: 500Gi}",
        BOTH,
        "is evicted before its volumes are full",
    ),
    "asked-port": (
        "monitoring.yaml",
        'list "http" "metrics"',
        'list "http" "figures"',
        ASKED,
        "asks figures, which no pod",
    ),
    "labels-of-services-of-pods": (
        "monitoring.yaml",
        'ternary "service" "pod" (eq',
        'ternary "service" "service" (eq',
        ASKED,
        "makes labels of __meta_kubernetes_service_label_app_kubernetes_io_component, which not",
    ),
    "labels-of-nobody": (
        "monitoring.yaml",
        "_label_app_kubernetes_io_component]",
        "_label_app_kubernetes_io_components]",
        ASKED,
        "makes labels of __meta_kubernetes_pod_label_app_kubernetes_io_components, which not each",
    ),
    "an-object-of-nobody": (
        "pdb.yaml",
        'include "plinth.labels" ',
        'include "plinth.roleLabels" ',
        BOTH,
        "not all of these are extraObjects, and none says that it is the chart's",
    ),
    "asked-of-others": (
        "monitoring.yaml",
        '{{- include "plinth.selectorAll" $ | nindent 6 }}',
        '{{- include "plinth.selector" (dict "root" $ "name" "gateway") | nindent 6 }}',
        ASKED,
        "does not reach the figures of StatefulSet/",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_chart_is_told(name: str, any_helm: rendering.Helm, tmp_path: Path) -> None:
    *_, values, told = MUTATIONS[name]
    chart = mutated(MUTATIONS[name], tmp_path)
    assert any(told in one for one in findings(any_helm, chart, values))


@pytest.mark.parametrize("values", [GOOGLE, AMAZON, ASKED])
def test_the_chart_itself_is_not(any_helm: rendering.Helm, values: dict) -> None:
    assert findings(any_helm, rendering.CHART, values) == []


def test_dns_is_where_it_is_said_to_be(any_helm: rendering.Helm) -> None:
    place = [{"ipBlock": {"cidr": "10.96.0.10/32"}}]
    values = {"networkPolicy": {"egress": {"dns": place}}}
    release = Release(rendering.documents(any_helm.render(values)))
    policy = release.named("NetworkPolicy", "demo-plinth-dns")
    assert policy is not None
    assert [rule["to"] for rule in policy["spec"]["egress"]] == [place, place]


def test_every_pod_and_what_makes_it_can_be_labelled(any_helm: rendering.Helm) -> None:
    """Kueue admits by labels: of pods, of a StatefulSet or Deployment, of a Ray cluster."""
    labels = {"kueue.x-k8s.io/queue-name": "models"}
    values = {
        **BOTH,
        "ray": {"labels": labels},
        "defaults": {"podLabels": labels, "workloadLabels": labels},
        "redis": {"podLabels": labels},
        "tests": {**BOTH["tests"], "podLabels": labels},
    }
    for mode in ("static", "rayservice"):
        ray = {"mode": mode, "autoscaler": {"enabled": False}}  # else Kueue admits no Ray cluster
        whole = rendering.merged(values, {"ray": ray})
        release = Release(rendering.documents(any_helm.render(whole)))
        bare = [pod.owner for pod in release.pods if not labels.items() <= pod.labels.items()]
        assert bare == []
        makers = [*release.of("Deployment"), *release.of("StatefulSet"), *release.of("RayService")]
        assert {
            one["metadata"]["name"]
            for one in makers
            if not labels.items() <= one["metadata"]["labels"].items()
        } == {
            "demo-plinth-redis"
        }  # a queue that waits for its turn would stop all that wait for it
    for key in ("app.kubernetes.io/component", "plinth.dev/ray-node"):
        with pytest.raises(rendering.Refused, match=r"podLabels of .* leave it out"):
            any_helm.render({"defaults": {"podLabels": {key: "other"}}})


def test_what_the_checks_know_is_the_charts(any_helm: rendering.Helm) -> None:
    """Of other objects they say nothing: neither labels nor hooks are theirs to have."""
    pod = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    spec = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": pod}
    one = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": spec}
    policy = {"apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "BackendTrafficPolicy"}
    two = {**policy, "metadata": {"name": "answers"}, "spec": {}}
    assert findings(any_helm, rendering.CHART, {"extraObjects": [one, two]}) == []


def test_more_objects_are_rendered_as_templates(any_helm: rendering.Helm) -> None:
    one = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": '{{ include "plinth.fullname" . }}-mine'},
        "data": {"namespace": "{{ .Release.Namespace }}"},
    }
    release = Release(rendering.documents(any_helm.render({"extraObjects": [one]})))
    made = release.named("ConfigMap", "demo-plinth-mine")
    assert made is not None and made["data"] == {"namespace": "models"}
    with pytest.raises(rendering.Refused, match="extraObjects"):
        any_helm.render({"extraObjects": [yaml.safe_load("{kind: ConfigMap}")]})
