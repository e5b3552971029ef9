"""The pods of a rendered chart as containers: what a kubelet does with them, as far as one Docker
engine can. Commands, variables, volumes, users and rights are the rendering's own; a pod's
containers share its network; a Service is a name on the network; readiness is asked as the probe
says; an upgrade replaces what differs as the controllers do. Not done: NetworkPolicies, resource
limits, restarts."""

from __future__ import annotations

import base64
import math
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from container_stack import PATIENCE_S, docker, until
from release import Document, Pod, Release
from rendering import NAMESPACE

SUBNET = "10.213.7"
PROBE_S = 3.0


@dataclass
class RunningPod:
    """One pod: its containers by name, its address."""

    name: str
    pod: Pod
    address: str
    volumes: str  # where its emptyDirs lie, below the cluster's folder
    containers: dict[str, str] = field(default_factory=dict)

    @property
    def main(self) -> str:
        return self.containers[self.pod.main["name"]]

    def ready(self) -> bool:
        """What the main container's readiness probe finds. AssertionError: one has ended."""
        for container in self.containers.values():
            if docker("inspect", "--format", "{{.State.Running}}", container) != "true":
                raise AssertionError(
                    f"{self.name} ended:\n{docker('logs', '--tail', '40', container)}"
                )
        probe = self.pod.main["readinessProbe"]
        if "exec" in probe:
            try:
                docker("exec", self.main, *probe["exec"]["command"])
            except AssertionError:
                return False
            return True
        if "httpGet" in probe:
            port = self.pod.ports().get(probe["httpGet"]["port"], probe["httpGet"]["port"])
            url = f"http://{self.address}:{port}{probe['httpGet']['path']}"
            try:
                with urllib.request.urlopen(url, timeout=PROBE_S) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False
        return self._serving(probe["grpc"]["port"], probe["grpc"].get("service", ""))

    def serves(self) -> bool:
        """Whether a stage's replica lives here: its health port answers."""
        return self._serving(self.pod.ports()["health"], "")

    def _serving(self, port: int, service: str) -> bool:
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(f"{self.address}:{port}", options=options) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PROBE_S)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Cluster:
    """A release on one engine. `folder` holds its volumes."""

    def __init__(self, release: Release, folder: Path, name: str) -> None:
        self.release, self.folder, self.name = release, folder, name
        self.pods: list[RunningPod] = []
        self._made = 0
        docker("network", "create", "--internal", "--subnet", f"{SUBNET}.0/24", name)

    def start(self) -> None:
        """Every pod of the release but the trials: Redis, the head, then the rest."""
        order = {"redis": 0, "head": 1}
        kinds = [pod for pod in self.release.pods if not pod.labels.get("plinth.dev/trial")]
        for kind in sorted(kinds, key=lambda pod: order.get(pod.component, 2)):
            for number in range(kind.count):
                self._pod(kind, number)
            if kind.component in order:
                self.await_ready(kind.component)

    def stop(self) -> None:
        """Ends and removes everything that this started."""
        found = docker("ps", "-aq", "--no-trunc", "--filter", f"network={self.name}").split()
        shared = [one for pod in self.pods for one in pod.containers.values()]
        if gone := sorted({*found, *shared}):
            docker("rm", "--force", *gone)
        docker("network", "rm", self.name)

    def of(self, component: str) -> list[RunningPod]:
        return [one for one in self.pods if one.pod.component == component]

    def await_ready(self, component: str) -> None:
        for one in self.of(component):
            until(one.ready, f"{one.name} is ready")

    def secret(self, name: str, key: str) -> str:
        found = self.release.named("Secret", name)
        assert found is not None, f"no Secret {name}"
        return base64.b64decode(found["data"][key]).decode()

    # -- an upgrade ------------------------------------------------------------------------

    def upgrade(self, release: Release) -> None:
        """What `helm upgrade` sets going: every set of pods whose template differs rolls, all sets
        at once. Returns when each pod is the new one and has been ready for `minReadySeconds`."""
        before, self.release = {pod.owner: pod for pod in self.release.pods}, release
        changed = [
            pod for pod in release.pods if pod.spec != before[pod.owner].spec and self._runs(pod)
        ]
        with ThreadPoolExecutor(len(changed)) as rolls:
            for roll in [rolls.submit(self._roll, pod) for pod in changed]:
                roll.result()

    def _runs(self, kind: Pod) -> bool:
        return any(one.pod.owner == kind.owner for one in self.pods)

    def _roll(self, kind: Pod) -> None:
        what, _, name = kind.owner.partition("/")
        owner = self.release.named(what, name)
        assert owner is not None
        old = [one for one in self.pods if one.pod.owner == kind.owner]
        for number, pod in reversed(list(enumerate(old))):
            if what == "StatefulSet":  # the last one first, each gone before its successor comes
                self._end(pod)
                self._available(self._pod(kind, number), owner)
            else:  # a Deployment with a surge of one
                self._available(self._pod(kind, number), owner)
                self._end(pod)

    def _available(self, pod: RunningPod, owner: Document) -> None:
        since = 0.0

        def there() -> bool:
            nonlocal since
            if not pod.ready():
                since = 0.0
                return False
            since = since or time.monotonic()
            return time.monotonic() - since >= owner["spec"].get("minReadySeconds", 0)

        until(there, f"{pod.name} is available", timeout_s=2 * PATIENCE_S)

    def _end(self, pod: RunningPod) -> None:
        """As a kubelet ends a pod: off its Services, preStop, SIGTERM, SIGKILL after the grace."""
        self.pods.remove(pod)
        end = time.monotonic() + pod.pod.spec["terminationGracePeriodSeconds"]
        if hook := pod.pod.main.get("lifecycle", {}).get("preStop"):
            try:  # whatever becomes of it, the pod ends
                docker("exec", pod.main, *hook["exec"]["command"], timeout_s=end - time.monotonic())
            except (AssertionError, subprocess.TimeoutExpired) as error:
                print(f"preStop of {pod.name}: {error}")
        for container in reversed(pod.containers.values()):  # the main one owns the network
            left = max(0, round(end - time.monotonic()))
            docker("stop", "--time", str(left), container, timeout_s=left + 60)
        docker("rm", "--force", "--volumes", *pod.containers.values())

    # -- one pod ---------------------------------------------------------------------------

    def _pod(self, kind: Pod, number: int) -> RunningPod:
        self._made += 1
        name, place = f"{kind.component}-{number}", self._made
        running = RunningPod(name, kind, f"{SUBNET}.{10 + place}", f"pods/{place}-{name}")
        for first in kind.spec.get("initContainers", []):
            wait = self._arguments(running, first, own_network=True)
            docker("run", "--rm", *wait, timeout_s=PATIENCE_S)
        for container in kind.containers:
            own = not running.containers
            made = docker("run", "--detach", *self._arguments(running, container, own_network=own))
            running.containers[container["name"]] = made
        self.pods.append(running)
        return running

    def _arguments(self, running: RunningPod, one: Document, *, own_network: bool) -> list[str]:
        """Options, image and command of `docker run`."""
        kind = running.pod
        context = {**kind.spec["securityContext"], **one.get("securityContext", {})}
        assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        options = ["--read-only", "--security-opt=no-new-privileges"]
        options += [f"--user={context['runAsUser']}:{context['runAsGroup']}"]
        options += [f"--cap-drop={name}" for name in context["capabilities"]["drop"]]
        if own_network:
            options += [f"--network={self.name}", f"--ip={running.address}"]
            options += [f"--hostname={running.name}"]
            options += [f"--network-alias={name}" for name in self._names(kind)]
        else:
            options += [f"--network=container:{running.main}"]
        environment = self._environment(running, one)
        options += [f"--env={name}={value}" for name, value in environment.items()]
        for mount in one.get("volumeMounts", []):
            options += self._mount(running, mount, context)
        words = [*one.get("command", []), *one.get("args", [])]
        words = [_expanded(str(word), environment) for word in words]
        image = re.sub(r"^docker\.io/(library/)?", "", one["image"])
        return [*options, f"--entrypoint={words[0]}", image, *words[1:]]

    def _names(self, kind: Pod) -> Iterator[str]:
        """Names under which Services lead to this pod."""
        for service in self.release.of("Service"):
            if kind.matches({"matchLabels": service["spec"]["selector"]}):
                name = service["metadata"]["name"]
                yield from (name, f"{name}.{NAMESPACE}.svc")

    def _environment(self, running: RunningPod, one: Document) -> dict[str, str]:
        found: dict[str, str] = {}
        for variable in one.get("env", []):
            source = variable.get("valueFrom", {})
            if reference := source.get("secretKeyRef"):
                value = self.secret(reference["name"], reference["key"])
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "status.podIP"
                value = running.address
            elif reference := source.get("resourceFieldRef"):
                value = self._cpus(running.pod, reference)
            else:
                value = _expanded(str(variable["value"]), found)
            found[variable["name"]] = value
        return found

    @staticmethod
    def _cpus(kind: Pod, reference: dict[str, Any]) -> str:
        """requests.cpu in whole ones, rounded up as Kubernetes does."""
        assert reference["resource"] == "requests.cpu" and reference["divisor"] == "1"
        named = next(c for c in kind.containers if c["name"] == reference["containerName"])
        asked = str(named["resources"]["requests"]["cpu"])
        return str(math.ceil(float(asked[:-1]) / 1000 if asked.endswith("m") else float(asked)))

    def _mount(self, running: RunningPod, mount: Document, context: Document) -> list[str]:
        target = mount["mountPath"]
        volume = self._volume(running.pod, mount["name"])
        user, group = context["runAsUser"], context["runAsGroup"]
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            return [f"--tmpfs={target}:rw,uid={user},gid={group},mode=0770"]
        if "configMap" in volume:
            content = self.release.named("ConfigMap", volume["configMap"]["name"])
            assert content is not None, volume
            folder = self.folder / "config" / volume["configMap"]["name"]
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in content["data"].items():
                (folder / name).write_text(text)
            source = folder / mount.get("subPath", "")
            return [f"--volume={source}:{target}:ro"]
        if claim := volume.get("persistentVolumeClaim"):
            source = self.folder / "claims" / claim["claimName"]
        elif volume.get("claim"):
            source = self.folder / "claims" / f"{running.name}-{mount['name']}"
        else:
            assert "emptyDir" in volume, volume
            source = self.folder / running.volumes / mount["name"]
        source = source / mount.get("subPath", "")
        source.mkdir(parents=True, exist_ok=True)
        # As fsGroup does.
        subprocess.run(["chown", f"{user}:{group}", source], check=True)
        return [f"--volume={source}:{target}"]

    def _volume(self, kind: Pod, name: str) -> Document:
        for volume in kind.spec.get("volumes", []):
            if volume["name"] == name:
                return dict(volume)
        return {"claim": name}  # by the StatefulSet's template


def _expanded(text: str, known: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda found: known.get(found[1], found[0]), text)
