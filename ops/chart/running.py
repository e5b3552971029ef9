"""Checks: what a pod runs is what the code has, with settings that it takes, on ports that it
opens, probed by what it serves, and ended after it has drained."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

import code_facts
import rendering
from plinth.cluster import node_drain, replicas
from plinth.cluster.applications import read_configuration, spec_of
from plinth.cluster.layout import NUMBERS, StackPlan
from plinth.shared.errors import PlinthError
from plinth.shared.rpc.tls import server_name
from plinth.shared.settings import Settings, load_settings
from release import Document, Pod, Release, title

RAYLET, GCS = 6800, 6379  # of `ray start`; both answer grpc.health.v1 for ""
IP = "10.1.2.3"
# Stage by the chart's component, where they differ.
STAGES = {"head": "reconciler"}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def check(release: Release) -> Iterator[str]:
    """Everything about running processes."""
    for pod in release.pods:
        for container in [*pod.containers, *pod.spec.get("initContainers", [])]:
            yield from _command(pod, container)
        if pod.component == "redis":
            continue
        yield from _settings(release, pod)
    for pod in release.pods:
        if not pod.labels.get("plinth.dev/trial"):
            yield from _probes(pod)
    yield from _applications(release)
    for one in yaml.safe_load(_serve_file(release) or "{}").get("applications", []):
        yield from _numbers(release, one)
    yield from _plan()


def _command(pod: Pod, container: Document) -> Iterator[str]:
    """`python -m` names a module that runs, with options that it has; in hooks as well."""
    hooks = container.get("lifecycle", {}).values()
    commands = [container.get("command", []), *(h["exec"]["command"] for h in hooks if "exec" in h)]
    for command in commands:
        if command[:2] != ["python", "-m"]:
            continue
        path = code_facts.module_file(command[2])
        if path is None:
            yield f"{pod.owner} runs python -m {command[2]}, which is no program"
            continue
        given = {str(word).partition("=")[0] for word in command[3:] if str(word).startswith("--")}
        for flag in sorted(given - code_facts.flags_of(path)):
            yield f"{pod.owner}: {command[2]} has no option {flag}"


def _settings(release: Release, pod: Pod) -> Iterator[str]:
    try:
        settings = _loaded(release, pod)
    except PlinthError as error:
        yield f"{pod.owner}: Plinth refuses its settings: {error.message}"
        return
    yield from _drain(pod, settings, _stop_s(release, pod))
    if pod.labels.get("plinth.dev/trial"):
        return
    yield from _whose(release, pod, settings.release or "")
    ports = pod.ports()
    if pod.component == "gateway":
        opened = {"http": settings.gateway.port, "grpc": settings.gateway.grpc_port}
    else:
        opened = {
            "grpc": settings.stage_port,
            "health": settings.health_port,
            "metrics": settings.metrics_port,
        }
        if settings.advertise_host != IP:
            yield f"{pod.owner} announces {settings.advertise_host}, not its own address"
    for name, port in opened.items():
        if name in ports and ports[name] != port:
            yield f"{pod.owner}: its port {name} is {ports[name]}, and the process opens {port}"


def _whose(release: Release, pod: Pod, named: str) -> Iterator[str]:
    """A Redis database is marked with this name, as one release's of one namespace."""
    namespace, _, name = named.partition("/")
    # Neither a namespace nor an object has a slash in its name, so that no two pairs read alike.
    if namespace != rendering.NAMESPACE or release.named("ConfigMap", f"{name}-config") is None:
        yield (
            f"{pod.owner} marks its Redis database {named!r}, not <namespace>/<name>: "
            "another release on it would serve this one's queues"
        )


def _loaded(release: Release, pod: Pod) -> Settings:
    """What the pod's main container would load: its variables, its file."""
    environment: dict[str, str] = {}
    for variable in pod.main.get("env", []):
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            value = "x" * 48
        elif "resourceFieldRef" in source:
            value = "4"
        else:
            value = IP if "fieldRef" in source else str(variable["value"])
        # Kubernetes fills in variables that stand above.
        for name, known in environment.items():
            value = value.replace(f"$({name})", known)
        environment[variable["name"]] = value
    for name, value in environment.items():
        if "$(" in value:
            raise _refused(f"{name} refers to a variable that comes later, or never: {value}")
    with tempfile.TemporaryDirectory() as folder:
        if "PLINTH_CONFIG" in environment:
            file = Path(folder) / "plinth.yaml"
            file.write_text(_mounted(release, pod, environment["PLINTH_CONFIG"]))
            environment["PLINTH_CONFIG"] = str(file)
        with mock.patch.dict(os.environ, environment, clear=True):
            return load_settings()


def _refused(message: str) -> PlinthError:
    return PlinthError(message)


def _mounted(release: Release, pod: Pod, path: str) -> str:
    """Content of a file that a ConfigMap brings; PlinthError when none is mounted there."""
    for mount in pod.main["volumeMounts"]:
        if mount["mountPath"] == path:
            volume = next(v for v in pod.spec["volumes"] if v["name"] == mount["name"])
            found = release.named("ConfigMap", volume["configMap"]["name"])
            if found and mount["subPath"] in found["data"]:
                return str(found["data"][mount["subPath"]])
    raise _refused(f"nothing is mounted at {path}")


def _probes(pod: Pod) -> Iterator[str]:
    for kind in PROBES:
        probe = pod.main.get(kind)
        if probe is None:
            yield f"{pod.owner} has no {kind}"
        elif "grpc" in probe:
            port, service = probe["grpc"]["port"], probe["grpc"].get("service", "")
            if not pod.has_port(port):
                yield f"{pod.owner}: {kind} asks port {port}, which is no port of its containers"
            if service not in _served(pod, port):
                yield f"{pod.owner}: {kind} asks {port} for {service!r}, which is not served there"
        elif "httpGet" in probe:
            port, path = probe["httpGet"]["port"], probe["httpGet"]["path"]
            if not pod.has_port(port):
                yield f"{pod.owner}: {kind} asks port {port}, which is no port of its containers"
            if pod.component != "gateway" or path not in code_facts.http_paths():
                yield f"{pod.owner}: {kind} asks for {path}, which is not served there"
        elif pod.component != "redis":
            yield f"{pod.owner}: {kind} asks nothing that is known"


def _served(pod: Pod, port: int) -> frozenset[str]:
    """gRPC services whose health a port tells, by the code; "" is the process itself."""
    ports, alive = pod.ports(), frozenset({""})
    if pod.component == "gateway":
        return code_facts.grpc_services("gateway") | alive if port == ports["grpc"] else frozenset()
    if port == ports.get("health"):
        stage = STAGES.get(pod.component, pod.component)
        return code_facts.grpc_services(stage) | alive
    return alive if port in (RAYLET, GCS) else frozenset()


def _stop_s(release: Release, pod: Pod) -> float:
    """How long Serve may take to stop the pod's replica. 0: nothing is told of it here."""
    text = _serve_file(release)
    specs = [spec_of(one["args"]) for one in yaml.safe_load(text or "{}").get("applications", [])]
    shards = [spec_of(s.options["shard"]) for s in specs if "shard" in s.options]
    found = (s for s in [*specs, *shards] if s.name == pod.component)
    return max((replicas.shutdown_timeout_s(spec) for spec in found), default=0.0)


def _drain(pod: Pod, settings: Settings, stop_s: float) -> Iterator[str]:
    """Kubernetes kills a pod after its grace, so that must outlast hook and drain together."""
    if pod.labels.get("plinth.dev/trial") or pod.component == "head":
        return
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)  # Kubernetes' own
    command = pod.main["lifecycle"]["preStop"]["exec"]["command"]
    gateway = pod.component == "gateway"
    options = dict(itertools.pairwise(command))
    hook = float(command[-1] if gateway else options.get("--timeout", 0))
    longest = hook + (settings.gateway.drain_s if gateway else node_drain.PATIENCE_S + 10)
    if not gateway and hook <= stop_s:
        yield (
            f"{pod.owner} is drained for {hook:g} s, less than Serve may take to stop a replica "
            f"({stop_s:g} s)"
        )
    if grace <= longest:
        yield f"{pod.owner} is killed after {grace} s, and its drain may take {longest:g} s"


def _serve_file(release: Release) -> str | None:
    for one in release.of("RayService"):
        return str(one["spec"]["serveConfigV2"])
    for one in release.of("ConfigMap"):
        if "applications.yaml" in one["data"]:
            return str(one["data"]["applications.yaml"])
    return None


def _applications(release: Release) -> Iterator[str]:
    """Every stage is deployed, from a factory that exists, on nodes that offer its resource."""
    text = _serve_file(release)
    if text is None:
        yield "Ray Serve is told to run nothing"
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        try:
            found = read_configuration(Path(file.name))
        except (PlinthError, KeyError) as error:
            yield f"the Serve configuration is refused: {error}"
            return
    specs = [spec_of(one["args"]) for one in found["applications"]]
    wanted = {stage.name for stage in StackPlan().stages} | {"reconciler"}
    if missing := wanted - {spec.name for spec in specs}:
        yield f"Ray Serve is not told of {', '.join(sorted(missing))}"
    shard = next((s.options["shard"] for s in specs if s.name == "reconciler"), None)
    if shard:
        specs.append(spec_of(shard))
    for spec in specs:
        if not code_facts.has_function(spec.factory):
            yield f"the stage {spec.name} is made by {spec.factory}, which does not exist"
        for resource, amount in spec.resources.items():
            pods = [pod for pod in release.ray_pods if pod.offers.get(resource)]
            if not pods:
                yield f"the stage {spec.name} needs {resource}, which no pod offers"
            elif any(pod.offers[resource] < amount for pod in pods):
                yield f"the stage {spec.name} needs {amount:g} {resource}, more than a pod offers"
            for pod in pods:
                # The replica's port must be there, and nobody else's certificate.
                if "grpc" not in pod.ports():
                    yield f"{pod.owner} hosts {spec.name} and has no port grpc"
        if not spec.resources:
            yield f"the stage {spec.name} may run on any node, where its ports may be taken"
    yield from _workers(release)
    yield from _certificates(release)


def _numbers(release: Release, application: Document) -> Iterator[str]:
    """How many replicas there are to be stands beside the arguments, as the code would have it with
    the release's own settings, or with its defaults."""
    name = application["name"]
    try:
        scaling = _loaded(release, release.ray_pods[0]).scaling
    except PlinthError:
        return  # told of already
    for key in sorted(NUMBERS & set(application["args"])):
        yield f"the stage {name} has {key} in its args: each change would replace all its replicas"
    for deployment in application.get("deployments", []):
        config = deployment["autoscaling_config"]
        spec = replace(
            spec_of(application["args"]),
            replicas=config["min_replicas"],
            max_replicas=config["max_replicas"],
            load_over_s=scaling.over_s,
            down_after_s=scaling.down_after_s,
        )
        if config != replicas.autoscaling(spec):
            yield f"the stage {name} is scaled by {config}, not as {replicas.autoscaling(spec)}"


def _workers(release: Release) -> Iterator[str]:
    for pod in release.ray_pods:
        if pod.component != "trainer":
            continue
        try:
            resource = settings_of(release, "trainer")["trainer"]["worker_resource"]
        except PlinthError:
            continue  # told with the pod's settings
        if not any(other.offers.get(resource) for other in release.ray_pods):
            yield f"training workers need {resource}, which no pod offers"


def _certificates(release: Release) -> Iterator[str]:
    for certificate in release.of("Certificate"):
        component = certificate["metadata"]["labels"]["app.kubernetes.io/component"]
        name = server_name(STAGES.get(component, component))
        if certificate["spec"]["dnsNames"] != [name]:
            yield f"{title(certificate)} must name {name}, which its clients verify"
        if missing := {"server auth", "client auth"} - set(certificate["spec"]["usages"]):
            yield f"{title(certificate)} lacks {', '.join(sorted(missing))}"


def _plan() -> Iterator[str]:
    """The chart spells out the factories of the laptop's own plan."""
    for stage in (*StackPlan().stages, StackPlan().shard):
        if not code_facts.has_function(stage.factory):
            yield f"the code's own plan names {stage.factory}, which does not exist"


def settings_of(release: Release, component: str) -> dict[str, Any]:
    """A component's plinth.yaml, for tests."""
    pod = next(pod for pod in release.pods if pod.component == component)
    return dict(yaml.safe_load(_mounted(release, pod, "/etc/plinth/plinth.yaml")))
