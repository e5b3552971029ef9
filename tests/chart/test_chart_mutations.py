"""The checks find what is broken: each mutation of the chart's source must be told, by its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import check
import rendering
from kinds import NEWEST, Kinds
from release import Release

BOTH = {"tests": {"chaos": {"enabled": True}}}
STATIC = {**BOTH, "ray": {"mode": "static"}}
TLS = {
    **BOTH,
    "tls": {"enabled": True, "certManager": {"enabled": True, "issuerRef": {"name": "ca"}}},
}
SCALED = {**BOTH, "gateway": {"autoscaling": {"enabled": True, "targetRequestsRunning": 8}}}
FOLLOWED = {
    **STATIC,
    "stages": {
        "inference": {"autoscaling": {"enabled": True}},
        "reward": {"autoscaling": {"enabled": True}},
    },
}
WATCHED = {
    "ray": {"mode": "static"},
    "networkPolicy": {"metrics": {"from": [{"namespaceSelector": {}}]}},
    "monitoring": {
        "serviceMonitor": {"enabled": True},
        "rules": {"enabled": True},
        "dashboards": {"enabled": True},
    },
}

# (file, what stands there, what is written instead, values, what the findings must say)
MUTATIONS = {
    "scraped-port": (
        "monitoring.yaml",
        'list "http" "metrics"',
        'list "https" "metrics"',
        WATCHED,
        "scrapes https, which no Service",
    ),
    "figures-behind-no-service": (
        "services.yaml",
        "name: metrics, port: 9464",
        "name: figures, port: 9464",
        WATCHED,
        "does not reach the figures of StatefulSet/",
    ),
    "rule-key": (
        "../files/plinth.rules.yaml",
        "        for: 1m",
        "        fore: 1m",
        WATCHED,
        "fore",
    ),
    "alert-on-nothing": (
        "../files/plinth.rules.yaml",
        "plinth_model_shards_ready",
        "plinth_model_shards_redy",
        WATCHED,
        "plinth_model_shards_redy is exported by nobody",
    ),
    "alert-without-runbook": (
        "../files/plinth.rules.yaml",
        "runbook: ops/runbooks/ShardsMissing.md",
        "runbook: ops/runbooks/Missing.md",
        WATCHED,
        "ShardsMissing has no runbook at ops/runbooks/Missing.md",
    ),
    "panel-on-nothing": (
        "../files/dashboards/serving.json",
        "plinth_requests_total",
        "plinth_request_total",
        WATCHED,
        "plinth_request_total is exported by nobody",
    ),
    "panel-label": (
        "../files/dashboards/serving.json",
        "by (le, model)",
        "by (le, modell)",
        WATCHED,
        "has the label 'modell'",
    ),
    "service-port": (
        "services.yaml",
        "targetPort: metrics",
        "targetPort: metric",
        STATIC,
        "has no port metric",
    ),
    "headless-port": (
        "services.yaml",
        "port: 50051, targetPort: grpc",
        "port: 50052, targetPort: grpc",
        BOTH,
        "is headless: grpc is 50051",
    ),
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
    "verb-missing": (
        "tests/chaos-rights.yaml",
        "[list, delete]",
        "[list]",
        BOTH,
        "uses delete pods",
    ),
    "verb-unused": (
        "tests/chaos-rights.yaml",
        "[list, delete]",
        "[list, delete, get]",
        BOTH,
        "may get pods, which nothing",
    ),
    "wrong-resource": (
        "tests/chaos-rights.yaml",
        "resources: [pods]",
        "resources: [pod]",
        BOTH,
        "uses list pods",
    ),
    "token-for-nothing": (
        "_pod.tpl",
        "automountServiceAccountToken: {{ $scaledHead }}",
        "automountServiceAccountToken: true",
        BOTH,
        "gets a token",
    ),
    "selector": (
        "pdb.yaml",
        '"name" $name) | nindent 6',
        '"name" (print $name "s")) | nindent 6',
        BOTH,
        "selects no pod",
    ),
    "governing-service": (
        "ray-static.yaml",
        'serviceName: {{ include "plinth.fullname" $ }}-{{ $name }}',
        'serviceName: {{ include "plinth.fullname" $ }}-x-{{ $name }}',
        STATIC,
        "is governed by",
    ),
    "edge-missing": (
        "networkpolicy.yaml",
        '"name" "gateway-to-stages" "pods" $gateway',
        '"name" "gateway-to-stages" "pods" $redis',
        BOTH,
        "the network stops gateway on its way to",
    ),
    "edge-port": (
        "networkpolicy.yaml",
        '$grpc := list (dict "port" 50051',
        '$grpc := list (dict "port" 50059',
        BOTH,
        "no pod listens on 50059",
    ),
    "edge-too-wide": (
        "networkpolicy.yaml",
        '"name" "stages-from-gateway" "pods" $ray "ingress" (list (dict "ports" $grpc "from"',
        '"name" "stages-from-gateway" "pods" $ray "ingress" (list (dict "from"',
        {**BOTH, "networkPolicy": {"extraEgress": [{}]}},
        "lets gateway reach",
    ),
    "mistyped-key": (
        "_pod.tpl",
        "terminationGracePeriodSeconds: {{ add $svc.drainSeconds 20 }}",
        "terminationGracePeriodSecond: {{ add $svc.drainSeconds 20 }}",
        BOTH,
        "terminationGracePeriodSecond",
    ),
    "mistyped-key-for-kuberay": (
        "rayservice.yaml",
        "enableInTreeAutoscaling: true",
        "enableInTreeAutoScaling: true",
        BOTH,
        "enableInTreeAutoScaling",
    ),
    "mistyped-key-in-a-ray-pod": (
        "_runtime.tpl",
        "emptyDir: {medium: Memory, sizeLimit",
        "emptyDir: {medium: Memory, sizelimit",
        BOTH,
        "sizelimit",
    ),
    "unknown-kind": (
        "pdb.yaml",
        "kind: PodDisruptionBudget",
        "kind: PodDisruptionBudgets",
        BOTH,
        "policy/v1 PodDisruptionBudgets is unknown",
    ),
    "old-api": ("pdb.yaml", "policy/v1\n", "policy/v1beta1\n", BOTH, "policy/v1beta1"),
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
    "scaling-default": (
        "_services.tpl",
        '"down_after_s") 300',
        '"down_after_s") 60',
        BOTH,
        "is scaled by",
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
    "head-works": (
        "rayservice.yaml",
        'num-cpus: "0"',
        'num-cpus: "1"',
        BOTH,
        "the head takes work",
    ),
    "redis-variable": (
        "_runtime.tpl",
        "REDIS_AUTH",
        "REDIS_PASSWORD",
        BOTH,
        "sets REDIS_PASSWORD",
    ),
    "restart-policy": (
        "rayservice.yaml",
        '"restartPolicy" "Never"',
        '"restartPolicy" "Always"',
        BOTH,
        "restartPolicy Never",
    ),
    "certificate-name": (
        "certificates.yaml",
        "plinth-{{ $svc.stage }}",
        "plinth-{{ $name }}",
        TLS,
        "must name plinth-reconciler",
    ),
    "certificate-key": (
        "certificates.yaml",
        "privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}",
        "privatKey: {algorithm: ECDSA}",
        TLS,
        "privatKey",
    ),
    "metric": (
        "gateway.yaml",
        "plinth_gateway_requests_running",
        "plinth_gateway_running",
        SCALED,
        "plinth_gateway_running is exported by nobody",
    ),
    "scaled-by-nothing": (
        "ray-static.yaml",
        "plinth_stage_replicas_wanted",
        "plinth_stage_replica_wanted",
        FOLLOWED,
        "plinth_stage_replica_wanted is exported by nobody",
    ),
    "scaled-by-a-label": (
        "ray-static.yaml",
        "matchLabels: {stage:",
        "matchLabels: {stages:",
        FOLLOWED,
        "has no label 'stages'",
    ),
    "scaled-by-another-stage": (
        "ray-static.yaml",
        "stage: {{ $name }}",
        "stage: trainer",
        FOLLOWED,
        "scales inference by what trainer needs",
    ),
    "scaled-is-missing": (
        "ray-static.yaml",
        "kind: StatefulSet, name: {{ $full }}",
        "kind: StatefulSet, name: {{ $full }}s",
        FOLLOWED,
        "inferences, which is missing",
    ),
    "scaled-by-the-figures-of": (
        "ray-static.yaml",
        '"plinth.fullname" $ }}-head}',
        '"plinth.fullname" $ }}-heads}',
        FOLLOWED,
        "-heads, not rendered",
    ),
    "scaled-twice": (
        "_replicas.tpl",
        "{{- $live := lookup",
        "{{- .least -}}{{- $live := lookup",
        FOLLOWED,
        "has a number of its own, and HorizontalPodAutoscaler/",
    ),
    "gateway-scaled-twice": (
        "_replicas.tpl",
        "{{- $live := lookup",
        "{{- .least -}}{{- $live := lookup",
        SCALED,
        "has a number of its own, and HorizontalPodAutoscaler/",
    ),
    "number-left-out-unnoted": (
        "ray-static.yaml",
        "plinth.dev/replicas: autoscaler",
        "plinth.dev/replicas: chart",
        FOLLOWED,
        "does not note it (plinth.dev/replicas: autoscaler)",
    ),
    "gateways-number-left-out-unnoted": (
        "gateway.yaml",
        "annotations: {plinth.dev/replicas: autoscaler}",
        "annotations: {plinth.dev/replica: autoscaler}",
        SCALED,
        "does not note it (plinth.dev/replicas: autoscaler)",
    ),
    "number-of-nobody": (
        "ray-static.yaml",
        "if or (not $scaled) $replicas",
        "if $scaled",
        STATIC,
        "says no number of pods, and nobody else does",
    ),
    "noted-and-said": (
        "gateway.yaml",
        'if and $scaling.enabled (eq $replicas "")',
        "if true",
        BOTH,
        "says a number, and notes that an autoscaler does",
    ),
    "counted-twice": (
        "ray-static.yaml",
        "kind: StatefulSet, name: {{ $full }}",
        'kind: StatefulSet, name: {{ include "plinth.fullname" $ }}-reward',
        FOLLOWED,
        "is counted by 2 autoscalers",
    ),
    "chart-unknown": (
        "_names.tpl",
        "helm.sh/chart:",
        "helm.sh/charts:",
        BOTH,
        "has no helm.sh/chart, by which `plinth k8s` knows its owner",
    ),
    "scaled-otherwise": (
        "_services.tpl",
        "downscale_delay_s: 0",
        "downscale_delay_s: 5",
        BOTH,
        "the stage reward is scaled by",
    ),
    "number-among-arguments": (
        "_services.tpl",
        '"cpus" 0.1 "resources"',
        '"replicas" 2 "cpus" 0.1 "resources"',
        BOTH,
        "has replicas in its args: each change would replace all its replicas",
    ),
    "root": ("redis.yaml", "runAsNonRoot: true", "runAsNonRoot: false", BOTH, "may run as root"),
    "plain-secret": (
        "_runtime.tpl",
        "- {name: RAY_AUTH_MODE, value: token}",
        "- {name: MY_TOKEN, value: abc}",
        BOTH,
        "MY_TOKEN in plain text",
    ),
    "twice": (
        "redis.yaml",
        "      serviceAccountName:",
        "      enableServiceLinks: true\n      serviceAccountName:",
        BOTH,
        "enableServiceLinks comes twice",
    ),
    "backend": (
        "gateway.yaml",
        "port: {name: http}}}",
        "port: {name: https}}}",
        {**BOTH, "gateway": {"ingress": {"enabled": True, "host": "a.example"}}},
        "has no port https",
    ),
}


def findings(helm: rendering.Helm, chart: Path, values: dict) -> list[str]:
    """What the checks say of a chart, with schemas where they are installed."""
    whole = rendering.merged(yaml.safe_load((chart / "values.yaml").read_text()), values)
    try:
        release = Release(rendering.documents(helm.render(values, chart=chart)))
    except rendering.Refused as refused:
        return [str(refused)]
    found = list(check.check_release(release, whole))
    if rendering.find_helm4() is not None:  # installed with kubernetes-validate
        found += Kinds().check(release, NEWEST)
    return found


def mutated(mutation: tuple[str, str, str, dict, str], folder: Path) -> Path:
    """A copy of the chart with the mutation."""
    file, there, instead, *_ = mutation
    chart = folder / "plinth"
    shutil.copytree(rendering.CHART, chart)
    path = chart / "templates" / file
    before = path.read_text()
    assert there in before, "the mutation's place is gone: adapt it"
    path.write_text(before.replace(there, instead))
    return chart


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_chart_is_told(name: str, any_helm: rendering.Helm, tmp_path: Path) -> None:
    *_, values, told = MUTATIONS[name]
    chart = mutated(MUTATIONS[name], tmp_path)
    assert any(told in one for one in findings(any_helm, chart, values))


@pytest.mark.parametrize("values", [BOTH, STATIC, TLS, SCALED, FOLLOWED, WATCHED])
def test_the_chart_itself_is_not(any_helm: rendering.Helm, values: dict) -> None:
    assert findings(any_helm, rendering.CHART, values) == []
