"""The two clusters that `plinth k8s` is tested on: the scripted server, and a real one."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import yaml
from click.testing import Result
from typer.testing import CliRunner

from kube_api import NAMESPACE, KubeApi
from kube_gateway import KEY
from plinth.cluster.finding import Finding
from plinth.shared.errors import PlinthError

Json = dict[str, Any]


def plinth_k8s(
    kubeconfig: Path, *arguments: str, namespace: str = NAMESPACE, url: str = "", key: str = KEY
) -> Result:
    """`plinth k8s …` in this process. An error of ours is in `result.exception`."""
    from plinth.cli.k8s import app

    environment = {"PLINTH_URL": url or None, "PLINTH_API_KEY": key or None, "COLUMNS": "200"}
    where = ("--kubeconfig", str(kubeconfig), "-n", namespace)
    result = CliRunner().invoke(app, [*where, *arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, PlinthError | SystemExit):
        raise result.exception
    return result


def error_of(result: Result) -> str:
    """What `plinth` prints of the PlinthError that ended it."""
    assert isinstance(result.exception, PlinthError), result.output
    return result.exception.message


class ScriptedCluster:
    """The scripted server, for what a real one answers alike."""

    namespace = NAMESPACE

    def __init__(self, kube: KubeApi, folder: Path) -> None:
        self.kube = kube
        self._folder = folder
        self.kubeconfig = kube.kubeconfig(folder)

    def put(self, path: str, found: Json) -> None:
        self.kube.put(path, found)

    def get(self, path: str) -> Json:
        return self.kube.objects[path]

    def powerless(self) -> Path:
        """Of somebody who may do nothing."""
        self.kube.forbidden.add(("list", "deployments"))
        return self.kubeconfig

    def close(self) -> None:
        pass


class RealCluster:
    """The API server of KUBECONFIG: a namespace of its own, deleted at the end."""

    def __init__(self, folder: Path) -> None:
        from kubernetes import client, config

        self.kubeconfig = Path(os.environ["KUBECONFIG"])
        self._folder = folder
        self._configuration = client.Configuration()
        config.load_kube_config(str(self.kubeconfig), client_configuration=self._configuration)
        self._client = client.ApiClient(self._configuration)
        self.namespace = f"plinth-test-{secrets.token_hex(4)}"
        spaces = "/api/v1/namespaces"
        self._call("POST", spaces, {"kind": "Namespace", "metadata": {"name": self.namespace}})

    def put(self, path: str, found: Json) -> None:
        collection, _, name = self._own(path).rpartition("/")
        found["metadata"]["name"] = name
        self._call("POST", collection, found)

    def get(self, path: str) -> Json:
        return self._call("GET", self._own(path))

    def powerless(self) -> Path:
        accounts = f"/api/v1/namespaces/{self.namespace}/serviceaccounts"
        self._call("POST", accounts, {"metadata": {"name": "nobody"}})
        token = self._call("POST", f"{accounts}/nobody/token", {"spec": {}})["status"]["token"]
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"] = [{"name": "nobody", "user": {"token": token}}]
        for one in config["contexts"]:
            one["context"]["user"] = "nobody"
        path = self._folder / "nobody.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def close(self) -> None:
        self._call("DELETE", f"/api/v1/namespaces/{self.namespace}")
        self._client.close()

    def _own(self, path: str) -> str:
        return path.replace(f"/namespaces/{NAMESPACE}/", f"/namespaces/{self.namespace}/")

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        asked = self._client.param_serialize(
            method,
            path,
            header_params={"Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self._client.call_api(*asked)
        text = response.read()
        assert 200 <= response.status <= 299, text
        answer: Json = json.loads(text)
        return answer


Cluster = ScriptedCluster | RealCluster


def levels(findings: list[Finding]) -> dict[str, str]:
    """Check → level."""
    return {finding.check: finding.level for finding in findings}


def of(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)
