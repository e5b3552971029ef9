"""Checks: what is scraped is there, and what dashboards and alerts ask for is exported."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from release import Document, Release, title

OPS = Path(__file__).resolve().parents[1]
FIGURES = 9464  # `metrics_port` of every stage in a pod
sys.path.append(str(OPS / "dashboards"))

import exported  # noqa: E402  (it lives beside the dashboards)


def check(release: Release) -> Iterator[str]:
    """Everything about monitoring."""
    for monitor in release.of("ServiceMonitor"):
        yield from _scraped(release, monitor)
        wanted = monitor["spec"]["selector"]["matchLabels"]
        behind = [one["metadata"]["labels"] for one in release.of("Service")]
        behind = [one for one in behind if wanted.items() <= one.items()]
        yield from _labelled(monitor, "service", monitor["spec"]["endpoints"], behind)
    for monitor in release.of("PodMonitor"):
        yield from _asked(release, monitor)
        picked = [pod.labels for pod in release.pods if pod.matches(monitor["spec"]["selector"])]
        yield from _labelled(monitor, "pod", monitor["spec"]["podMetricsEndpoints"], picked)
    if release.of("ServiceMonitor") and release.of("PodMonitor"):
        yield "a ServiceMonitor and a PodMonitor would count each figure twice"
    recorded: dict[str, frozenset[str]] = {}
    for rules in release.of("PrometheusRule"):
        recorded |= exported.recorded(_rules(rules))
        for rule in _rules(rules):
            for fault in exported.faults(str(rule["expr"]), recorded):
                yield f"{title(rules)}: {rule.get('alert') or rule['record']}: {fault}"
            yield from _runbook(rules, rule)
    for scaler in release.of("HorizontalPodAutoscaler"):
        yield from _scaled_by(release, scaler)
    for board in release.of("ConfigMap"):
        for name, text in board.get("data", {}).items():
            if name.endswith(".json") and "-dashboard-" in board["metadata"]["name"]:
                yield from _board(board, name, text)


def _scraped(release: Release, monitor: Document) -> Iterator[str]:
    """Every endpoint is a port of some Service that the monitor selects, and each pod with figures
    is behind one."""
    wanted = monitor["spec"]["selector"]["matchLabels"]
    services = [
        service
        for service in release.of("Service")
        if wanted.items() <= service["metadata"]["labels"].items()
    ]
    ports = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    known = {port["name"] for service in services for port in service["spec"]["ports"]}
    for port in sorted(ports - known):
        yield f"{title(monitor)} scrapes {port}, which no Service that it selects has"
    for pod in release.pods:
        if pod.ports().get("metrics") != FIGURES:
            continue
        behind = [one for one in services if pod in release.picked(one["spec"].get("selector"))]
        if not any(port["name"] == "metrics" for one in behind for port in one["spec"]["ports"]):
            yield f"{title(monitor)} does not reach the figures of {pod.owner}"


def _asked(release: Release, monitor: Document) -> Iterator[str]:
    """Every endpoint is a port of some pod that the monitor selects, and each pod with figures is
    one of those."""
    picked = [pod for pod in release.pods if pod.matches(monitor["spec"]["selector"])]
    ports = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    for port in sorted(ports - {name for pod in picked for name in pod.ports()}):
        yield f"{title(monitor)} asks {port}, which no pod that it selects has"
    for pod in release.pods:
        figures = {name for name in ("metrics", "ray-metrics") if name in pod.ports()}
        if figures and (pod not in picked or not figures <= ports):
            yield f"{title(monitor)} does not reach the figures of {pod.owner}"


def _labelled(
    monitor: Document, role: str, endpoints: list[Document], picked: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    """What it makes labels of is known: Prometheus' discovery names the labels of what it finds, of
    pods or of Services (prometheus.io, kubernetes_sd_config), and all that is picked has them."""
    known = [
        {f"__meta_kubernetes_{role}_label_{re.sub('[^a-zA-Z0-9_]', '_', name)}" for name in labels}
        for labels in picked
    ]
    for source in sorted(
        {
            source
            for endpoint in endpoints
            for rule in endpoint.get("relabelings", [])
            for source in rule.get("sourceLabels", [])
        }
    ):
        if not all(source in names for names in known):
            yield f"{title(monitor)} makes labels of {source}, which not each {role} has"


def _scaled_by(release: Release, scaler: Document) -> Iterator[str]:
    """What it scales by is exported, with the labels that it selects by, of the stage it scales."""
    ref = scaler["spec"]["scaleTargetRef"]
    target = release.named(ref["kind"], ref["name"]) or scaler  # told elsewhere, if it is missing
    component = target["metadata"]["labels"]["app.kubernetes.io/component"]
    for metric in scaler["spec"]["metrics"]:
        asked = (metric.get("pods") or metric.get("object") or {}).get("metric")
        if asked is None:
            continue  # processor time, which Kubernetes counts
        labels = asked.get("selector", {}).get("matchLabels", {})
        matchers = ",".join(f'{name}="{value}"' for name, value in labels.items())
        for fault in exported.faults(f"{asked['name']}{{{matchers}}}"):
            yield f"{title(scaler)}: {fault}"
        if labels.get("stage", component) != component:
            yield f"{title(scaler)} scales {component} by what {labels['stage']} needs"


def _rules(document: Document) -> Iterator[Document]:
    for group in document["spec"]["groups"]:
        yield from group["rules"]


def _runbook(document: Document, rule: Document) -> Iterator[str]:
    if "alert" not in rule:
        return
    page = rule.get("annotations", {}).get("runbook", "")
    if not page or not (OPS.parent / page).is_file():
        yield f"{title(document)}: {rule['alert']} has no runbook at {page or 'any place'}"


def _board(document: Document, name: str, text: str) -> Iterator[str]:
    try:
        board = json.loads(text)
    except ValueError as error:
        yield f"{title(document)}: {name} is not JSON: {error}"
        return
    for expr in _queries(board):
        for fault in exported.faults(expr):
            yield f"{title(document)}: {name}: {fault}"


def _queries(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(expr := node.get("expr"), str):
            yield expr
        for value in node.values():
            yield from _queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from _queries(value)
