"""A real Helm, of either major, that installs the chart into the scripted API server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response

import immutable
import rendering
from kube_api import KubeApi
from kube_calls import Call, refused
from kube_objects import Json, merged, selected
from kube_owners import Conflict, applied, defaulted, updated

RELEASE = "plinth"
# As discovery tells of them: group and version → kind → resource.
_KINDS = {
    "v1": {
        "ConfigMap": "configmaps",
        "Secret": "secrets",
        "Service": "services",
        "ServiceAccount": "serviceaccounts",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "Pod": "pods",
    },
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "batch/v1": {"Job": "jobs"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "ray.io/v1": {"RayService": "rayservices", "RayCluster": "rayclusters"},
    "rbac.authorization.k8s.io/v1": {"Role": "roles", "RoleBinding": "rolebindings"},
}
_BUILT_IN = {group for group in _KINDS if group != "ray.io/v1"}


class Immutable(Exception):
    """An update that changes what can't be changed; the text says so as the API server does."""


class HelmServer(KubeApi):
    """Takes what Helm sends: discovery, creation, the three kinds of patches, deletion."""

    asks_who = False

    def put(self, path: str, found: Json) -> Json:
        """As it is, unless it changes what is fixed. Immutable."""
        before = self.objects.get(path)
        if before is not None and (told := immutable.refusal(before, found)):
            group = found["apiVersion"].partition("/")[0] if "/" in found["apiVersion"] else ""
            name = f"{found['kind']}{f'.{group}' if group else ''}"
            raise Immutable(f'{name} "{found["metadata"]["name"]}" is invalid: {told}')
        return super().put(path, found)

    def autoscale(self, path: str, replicas: int) -> None:
        """What the controller of a HorizontalPodAutoscaler does, through the scale."""
        self.write(path, {"spec": {"replicas": replicas}}, "kube-controller-manager", "scale")

    def write(self, path: str, change: Json, manager: str, subresource: str = "") -> None:
        """A merge patch by somebody."""
        now = self.objects[path]
        self.put(path, updated(now, merged(now, change), manager, subresource))

    def _answer(self, call: Call, content: str) -> Response:
        try:
            return self._done(call, content)
        except Immutable as error:
            return refused(422, str(error), reason="Invalid")

    def _done(self, call: Call, content: str) -> Response:
        if (told := _discovered(call.path)) is not None:
            return JSONResponse(told)
        if call.method == "POST" and isinstance(call.body, dict) and "metadata" in call.body:
            path = f"{call.path}/{call.body['metadata']['name']}"
            if path in self.objects:
                return refused(409, f"{path} already exists", reason="AlreadyExists")
            made = updated({"metadata": {}}, call.body, call.manager)
            return JSONResponse(self.put(path, defaulted(made)), 201)
        if call.method == "PUT":
            return JSONResponse(self.put(call.path, call.body))
        if call.method == "DELETE":
            if call.path not in self.objects:
                return refused(404, f"{call.path} not found")
            self.delete(call.path)
            return JSONResponse({"kind": "Status", "apiVersion": "v1", "status": "Success"})
        if call.method == "PATCH" and "apply-patch" in content:
            return self._apply(call)
        if call.method == "PATCH" and "strategic" in content:
            # Of lists it would say more than a merge patch; no test changes one.
            assert "$" not in json.dumps(call.body), call.body
        for group, kinds in _KINDS.items():
            for kind, resource in kinds.items():
                if call.method == "GET" and call.path.endswith(f"/{resource}"):
                    return JSONResponse(self._listed(call, group, kind))
        return super()._answer(call, content)

    def _listed(self, call: Call, group: str, kind: str) -> Json:
        items = [o for p, o in self.objects.items() if selected(p, o, call.path, call.query)]
        version = {"resourceVersion": str(self._version)}
        return {"kind": f"{kind}List", "apiVersion": group, "metadata": version, "items": items}

    def _apply(self, call: Call) -> Response:
        live, force = self.objects.get(call.path), call.query.get("force") == "true"
        try:
            made = applied(live, call.body, call.manager, force=force)
        except Conflict as conflict:
            causes = {"causes": conflict.causes}
            return refused(409, str(conflict), reason="Conflict", details=causes)
        return JSONResponse(self.put(call.path, defaulted(made)), 200 if live else 201)


def _discovered(path: str) -> Json | None:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [
            {"name": group.partition("/")[0], "versions": [one], "preferredVersion": one}
            for group in _KINDS
            if "/" in group
            for one in [{"groupVersion": group, "version": group.partition("/")[2]}]
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path.startswith("/openapi/v3"):
        return _validated(path)
    found = re.fullmatch(r"/(?:api|apis)/(v1|[^/]+/v\d)", path)
    if found is None or found[1] not in _KINDS:
        return None
    resources = [
        {
            "name": resource,
            "singularName": kind.lower(),
            "namespaced": True,
            "kind": kind,
            "shortNames": ["pvc"] if kind == "PersistentVolumeClaim" else [],
            "verbs": ["create", "delete", "get", "list", "patch", "update"],
        }
        for kind, resource in _KINDS[found[1]].items()
    ]
    told = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": found[1]}
    return told | {"resources": resources}


def _validated(path: str) -> Json | None:
    """That the server checks the fields of what is sent, so that Helm does not."""
    at = {f"{'apis' if '/' in group else 'api'}/{group}": group for group in _KINDS}
    if path == "/openapi/v3":
        return {"paths": {one: {"serverRelativeURL": f"/openapi/v3/{one}"} for one in at}}
    base = path.removeprefix("/openapi/v3/")
    if base not in at:
        return None
    group, _, version = at[base].rpartition("/")
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {
        f"/{base}/namespaces/{{namespace}}/{resource}/{{name}}": {
            "patch": {
                "parameters": [parameter],
                "responses": {},
                "x-kubernetes-group-version-kind": {
                    "group": group,
                    "version": version,
                    "kind": kind,
                },
            }
        }
        for kind, resource in _KINDS[at[base]].items()
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"}, "paths": paths}


class HelmClient(Protocol):
    """What is done to the release `plinth`. Refused, with what Helm said."""

    def install(self, values: Json) -> None: ...

    def upgrade(self, values: Json) -> str:
        """What Helm prints."""
        ...

    def rollback(self, revision: int) -> None: ...


class Helm3Client:
    """The binary of Helm 3: patches made of three manifests, client-side."""

    def __init__(self, binary: Path, kubeconfig: Path, namespace: str) -> None:
        self._binary = binary
        self._where = ["--kubeconfig", str(kubeconfig), "--namespace", namespace]
        self._where += ["--burst-limit", "1000"]

    def install(self, values: Json) -> None:
        self._run("install", values, "--disable-openapi-validation")

    def upgrade(self, values: Json) -> str:
        return self._run("upgrade", values, "--disable-openapi-validation")

    def rollback(self, revision: int) -> None:
        self._run("rollback", None, str(revision))

    def _run(self, verb: str, values: Json | None, *more: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            words = [str(self._binary), verb, RELEASE, *more, *self._where]
            if values is not None:
                path = Path(folder) / "values.json"
                path.write_text(json.dumps(values))
                words[3:3] = [str(rendering.CHART), "--values", str(path)]
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                check=False,
                env={"PATH": os.environ.get("PATH", ""), "HOME": folder},
            )
        if done.returncode:
            raise rendering.Refused((done.stderr or done.stdout).strip())
        return done.stdout


class Helm4Client:
    """Helm 4 as a library: server-side apply."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        from helm_python import chart, config, errors

        # Its records here: it would send them to the server as protocol buffers.
        self._config = config.Config(
            kubeconfig_path=str(kubeconfig),
            namespace=namespace,
            storage_driver="memory",
            qps=1000,
            burst_limit=1000,
        )
        self._chart, self._error = chart.Chart.load(str(rendering.CHART)), errors.HelmError

    def install(self, values: Json) -> None:
        self._done(lambda: self._config.install(self._chart, RELEASE, values))

    def upgrade(self, values: Json) -> str:
        made = self._done(lambda: self._config.upgrade(self._chart, RELEASE, values))
        return str(made["notes"])

    def rollback(self, revision: int) -> None:
        self._done(lambda: self._config.rollback(RELEASE, version=revision))

    def _done(self, work: Any) -> Any:
        try:
            return work()
        except self._error as error:
            raise rendering.Refused(str(error)) from error


def client(helm: rendering.Helm, kubeconfig: Path, namespace: str) -> HelmClient:
    """The same Helm as renders, for a cluster."""
    if isinstance(helm, rendering.Helm3):
        return Helm3Client(helm.binary, kubeconfig, namespace)
    return Helm4Client(kubeconfig, namespace)
