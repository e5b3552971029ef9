"""Mutations of what Ray and its operator take from the chart: each must be told, by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_chart_mutations import BOTH, STATIC, findings, mutated

import rendering

# (file, what stands there, what is written instead, values, what the findings must say)
MUTATIONS = {
    "no-serve-port": (
        "_pod.tpl",
        "- {name: serve, containerPort: 8000",
        "- {name: proxy, containerPort: 8000",
        BOTH,
        "no port named serve, so KubeRay makes no Serve service",
    ),
    "asked-for-a-proxy": (
        "rayservice.yaml",
        "excludeHeadPodFromServeSvc: true",
        "excludeHeadPodFromServeSvc: false",
        BOTH,
        "would wait for a Serve proxy on the head",
    ),
    "one-storage-for-two-clusters": (
        "rayservice.yaml",
        "      redisPassword:",
        '      externalStorageNamespace: {{ include "plinth.fullname" . }}\n      redisPassword:',
        BOTH,
        "the old and the new cluster of an upgrade would share",
    ),
    "a-head-without-an-account": (
        "_pod.tpl",
        '  serviceAccountName: {{ include "plinth.serviceAccountName" $root }}',
        "  {{- if not $scaledHead }}\n"
        '  serviceAccountName: {{ include "plinth.serviceAccountName" $root }}\n  {{- end }}',
        BOTH,
        "RayService/demo-plinth head names no service account",
    ),
    "an-autoscaler-without-a-token": (
        "_pod.tpl",
        "automountServiceAccountToken: {{ $scaledHead }}",
        "automountServiceAccountToken: false",
        BOTH,
        "RayService/demo-plinth head speaks to the API server and gets no token",
    ),
    "an-account-that-is-renamed": (
        "_pod.tpl",
        "  serviceAccountName: {{",
        "  serviceAccountName: 0{{",
        BOTH,
        "KubeRay would rename the head's account",
    ),
    "a-budget-that-keeps-broken-pods": (
        "pdb.yaml",
        "  unhealthyPodEvictionPolicy: AlwaysAllow\n",
        "",
        BOTH,
        "keeps a node from being drained for pods that are not ready",
    ),
    "a-taint-for-everybody": (
        "_pod.tpl",
        '(ternary (dig "gpu" "tolerations" list .) list $gpus)',
        '(dig "gpu" "tolerations" list .)',
        {"defaults": {"gpu": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}}},
        "has no GPU and tolerates the taint nvidia.com/gpu",
    ),
    "a-cache-on-the-node-unasked": (
        "_runtime.tpl",
        'emptyDir: {sizeLimit: {{ include "plinth.quantity" $root.Values.cache.sizeLimit }}}',
        "hostPath: {path: {{ $root.Values.cache.hostPath }}, type: DirectoryOrCreate}",
        BOTH,
        "PodSecurity restricted refuses the volume cache (hostPath)",
    ),
    "a-secret-that-pods-miss": (
        "_pod.tpl",
        "    checksum/secrets:",
        "    checksum/secret:",
        STATIC,
        "reads a Secret and would not follow its change",
    ),
    "a-password-that-redis-misses": (
        "redis.yaml",
        "        checksum/secrets:",
        "        checksum/secret:",
        STATIC,
        "StatefulSet/demo-plinth-redis reads a Secret and would not follow its change",
    ),
    "one-storage-for-two-namespaces": (
        "_runtime.tpl",
        'printf "%s/%s" $root.Release.Namespace (include "plinth.fullname" $root)',
        'include "plinth.fullname" $root',
        STATIC,
        "of the same name in another namespace on the same Redis would share it",
    ),
    "one-storage-for-two-releases": (
        "_runtime.tpl",
        'printf "%s/%s" $root.Release.Namespace (include "plinth.fullname" $root)',
        'printf "%s/plinth" $root.Release.Namespace',
        STATIC,
        "is named after plinth, another release",
    ),
    "an-at-in-the-storage": (
        "_runtime.tpl",
        'printf "%s/%s" $root.Release.Namespace (include "plinth.fullname" $root)',
        'printf "%s/%s@1" $root.Release.Namespace (include "plinth.fullname" $root)',
        STATIC,
        "Ray ends at once on a GCS storage with an @",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_chart_is_told(name: str, any_helm: rendering.Helm, tmp_path: Path) -> None:
    *_, values, told = MUTATIONS[name]
    chart = mutated(MUTATIONS[name], tmp_path)
    assert any(told in one for one in findings(any_helm, chart, values))
