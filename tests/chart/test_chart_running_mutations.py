"""The checks find what is broken of what runs in pods: ports, probes, settings, programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_chart_mutations import BOTH, STATIC, findings, mutated

import rendering

# (file, what stands there, what is written instead, values, what the findings must say)
MUTATIONS = {
    "container-port": (
        "_pod.tpl",
        "name: grpc, containerPort: 50051",
        "name: grpc, containerPort: 50061",
        BOTH,
        "its port grpc is 50061, and the process opens 50051",
    ),
    "settings-port": (
        "_services.tpl",
        '"health_port" 50050',
        '"health_port" 50055',
        STATIC,
        "its port health is 50050, and the process opens 50055",
    ),
    "a-database-of-any-namespace": (
        "_services.tpl",
        'printf "%s/%s" .Release.Namespace (include "plinth.fullname" .)',
        'include "plinth.fullname" .',
        BOTH,
        "marks its Redis database 'demo-plinth'",
    ),
    "a-database-of-any-release": (
        "_services.tpl",
        'printf "%s/%s" .Release.Namespace (include "plinth.fullname" .)',
        'printf "%s/plinth" .Release.Namespace',
        STATIC,
        "marks its Redis database 'models/plinth'",
    ),
    "probe-port": ("_pod.tpl", '"port" 50050', '"port" 50056', BOTH, "asks port 50056"),
    "probe-service": (
        "_services.tpl",
        '"reward" "plinth.v1.RewardService"',
        '"reward" "plinth.v1.RewardsService"',
        BOTH,
        "'plinth.v1.RewardsService', which is not served there",
    ),
    "probe-path": ("_pod.tpl", '"/healthz"', '"/alive"', BOTH, "asks for /alive"),
    "no-probe": ("_pod.tpl", '"livenessProbe"', '"livenesProbe"', STATIC, "livenesProbe"),
    "token-for-nothing": (
        "_pod.tpl",
        "automountServiceAccountToken: {{ $scaledHead }}",
        "automountServiceAccountToken: true",
        BOTH,
        "gets a token",
    ),
    "mistyped-key": (
        "_pod.tpl",
        "terminationGracePeriodSeconds: {{ add $svc.drainSeconds 20 }}",
        "terminationGracePeriodSecond: {{ add $svc.drainSeconds 20 }}",
        BOTH,
        "terminationGracePeriodSecond",
    ),
    "mistyped-key-in-a-ray-pod": (
        "_runtime.tpl",
        "emptyDir: {medium: Memory, sizeLimit",
        "emptyDir: {medium: Memory, sizelimit",
        BOTH,
        "sizelimit",
    ),
    "volume": ("_runtime.tpl", "name: shm, mountPath", "name: shmem, mountPath", BOTH, "shmem"),
    "config-key": (
        "_runtime.tpl",
        "subPath: plinth.yaml",
        "subPath: plinth.yml",
        BOTH,
        "the key plinth.yml",
    ),
    "secret-key": ("_runtime.tpl", "key: cluster-token", "key: token", BOTH, "the key token"),
    "setting": (
        "_services.tpl",
        '"log_to" "stderr"',
        '"logs_to" "stderr"',
        BOTH,
        "Plinth refuses its settings",
    ),
    "variable-order": (
        "_runtime.tpl",
        "- name: POD_IP\n  valueFrom: {fieldRef: {fieldPath: status.podIP}}\n",
        "",
        BOTH,
        "comes later, or never",
    ),
    "module": ("_pod.tpl", "plinth.cluster.node_drain", "plinth.cluster.drain", BOTH, "no program"),
    "option": (
        "_pod.tpl",
        "              - --timeout\n",
        "              - --grace\n",
        BOTH,
        "no option --grace",
    ),
    "grace": (
        "_pod.tpl",
        "{{ add $svc.drainSeconds 105 }}",
        "{{ $svc.drainSeconds }}",
        BOTH,
        "is killed after",
    ),
    "answers-outlast-the-hook": (
        "_services.tpl",
        "stages.inference.drainSeconds)) 35)",
        "stages.inference.drainSeconds)) 5)",
        BOTH,
        "less than Serve may take to stop",
    ),
    "gateway-grace": (
        "_pod.tpl",
        "{{ add $svc.drainSeconds 20 }}",
        "{{ $svc.drainSeconds }}",
        BOTH,
        "is killed after",
    ),
    "factory": (
        "_services.tpl",
        'printf "plinth.%s.service:build"',
        'printf "plinth.%s.service:make"',
        BOTH,
        "service:make, which does not exist",
    ),
    "resource": (
        "_services.tpl",
        '$offers := dict (printf "plinth/%s" $name) 1',
        '$offers := dict (printf "plinth/%ss" $name) 1',
        STATIC,
        "needs plinth/tokenizer, which no pod offers",
    ),
    "worker-resource": (
        "_services.tpl",
        '"worker_resource" "plinth/train-worker"',
        '"worker_resource" "plinth/trainers"',
        BOTH,
        "training workers need plinth/trainers",
    ),
    "proxy": (
        "_services.tpl",
        "proxy_location: Disabled",
        "proxy_location: HeadOnly",
        BOTH,
        "must be Disabled",
    ),
    "redis-variable": (
        "_runtime.tpl",
        "REDIS_AUTH",
        "REDIS_PASSWORD",
        BOTH,
        "sets REDIS_PASSWORD",
    ),
    "plain-secret": (
        "_runtime.tpl",
        "- {name: RAY_AUTH_MODE, value: token}",
        "- {name: MY_TOKEN, value: abc}",
        BOTH,
        "MY_TOKEN in plain text",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_pod_is_told(name: str, any_helm: rendering.Helm, tmp_path: Path) -> None:
    *_, values, told = MUTATIONS[name]
    chart = mutated(MUTATIONS[name], tmp_path)
    assert any(told in one for one in findings(any_helm, chart, values))


@pytest.mark.parametrize("values", [BOTH, STATIC])
def test_the_chart_itself_is_not(any_helm: rendering.Helm, values: dict) -> None:
    assert findings(any_helm, rendering.CHART, values) == []
