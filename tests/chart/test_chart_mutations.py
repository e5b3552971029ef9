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


# (file, what stands there, what is written instead, values, what the findings must say)
MUTATIONS = {
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
    "mistyped-key-for-kuberay": (
        "rayservice.yaml",
        "enableInTreeAutoscaling: true",
        "enableInTreeAutoScaling: true",
        BOTH,
        "enableInTreeAutoScaling",
    ),
    "unknown-kind": (
        "pdb.yaml",
        "kind: PodDisruptionBudget",
        "kind: PodDisruptionBudgets",
        BOTH,
        "policy/v1 PodDisruptionBudgets is unknown",
    ),
    "old-api": ("pdb.yaml", "policy/v1\n", "policy/v1beta1\n", BOTH, "policy/v1beta1"),
    "head-works": (
        "rayservice.yaml",
        'num-cpus: "0"',
        'num-cpus: "1"',
        BOTH,
        "the head takes work",
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
    "root": ("redis.yaml", "runAsNonRoot: true", "runAsNonRoot: false", BOTH, "may run as root"),
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


@pytest.mark.parametrize("values", [BOTH, STATIC, TLS])
def test_the_chart_itself_is_not(any_helm: rendering.Helm, values: dict) -> None:
    assert findings(any_helm, rendering.CHART, values) == []
