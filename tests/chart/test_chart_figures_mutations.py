"""The checks find what is broken of figures: who is asked for them, and who counts pods by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_chart_mutations import BOTH, STATIC, findings, mutated

import rendering

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
    "scaling-default": (
        "_services.tpl",
        '"down_after_s") 300',
        '"down_after_s") 60',
        BOTH,
        "is scaled by",
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
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_figure_is_told(name: str, any_helm: rendering.Helm, tmp_path: Path) -> None:
    *_, values, told = MUTATIONS[name]
    chart = mutated(MUTATIONS[name], tmp_path)
    assert any(told in one for one in findings(any_helm, chart, values))


@pytest.mark.parametrize("values", [SCALED, FOLLOWED, WATCHED])
def test_the_chart_itself_is_not(any_helm: rendering.Helm, values: dict) -> None:
    assert findings(any_helm, rendering.CHART, values) == []
