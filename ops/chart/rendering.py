"""Helm, both majors: the chart rendered into documents, or refused with what Helm said.

Helm 4 is the library of `helm-python-sdk`; Helm 3 is a binary, by HELM3 or on the path. Values are
merged here for Helm 4, which takes one mapping, as Helm merges `-f` files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "plinth"
RELEASE, NAMESPACE = "demo", "models"
Document = dict[str, Any]
Values = Mapping[str, Any]


class Refused(Exception):
    """Helm does not render or lint the chart with these values; the text says why."""


class Helm(Protocol):
    """One Helm."""

    name: str

    def render(self, values: Values, *, chart: Path = CHART, kube: str = "1.37.0") -> str:
        """All manifests as one YAML text, hooks included, NOTES left out. Refused."""
        ...

    def lint(self, values: Values, *, chart: Path = CHART) -> None:
        """Warnings count as errors. Refused."""
        ...


class Helm4:
    """`helm-python-sdk`; ImportError where it isn't installed."""

    def __init__(self) -> None:
        from helm_python import chart, errors

        self.name = "Helm 4"
        self._chart, self._error = chart, errors.HelmError

    def render(self, values: Values, *, chart: Path = CHART, kube: str = "1.37.0") -> str:
        # The library renders for its own newest Kubernetes; `kube` is Helm 3's to try.
        del kube
        try:
            loaded = self._chart.Chart.load(str(chart))
            made = loaded.render(dict(values), name=RELEASE, namespace=NAMESPACE, is_install=True)
        except self._error as error:
            raise Refused(str(error)) from error
        files = {path: text for path, text in made.items() if path.endswith(".yaml")}
        return "\n---\n".join(f"# Source: {path}\n{files[path]}" for path in sorted(files))

    def notes(self, values: Values, *, chart: Path = CHART) -> str:
        """What `helm install` prints."""
        loaded = self._chart.Chart.load(str(chart))
        made = loaded.render(dict(values), name=RELEASE, namespace=NAMESPACE, is_install=True)
        return str(made["plinth/templates/NOTES.txt"])

    def lint(self, values: Values, *, chart: Path = CHART) -> None:
        try:
            report = self._chart.lint(str(chart), dict(values), strict=True)
        except self._error as error:
            raise Refused(str(error)) from error
        loud = [m["error"] for m in report["messages"] if m["severity"] >= 2] + report["errors"]
        if loud:
            raise Refused("; ".join(loud))


@dataclass
class Helm3:
    """A `helm` binary of major 3."""

    binary: Path
    name: str = "Helm 3"

    def render(self, values: Values, *, chart: Path = CHART, kube: str = "1.37.0") -> str:
        flags = ["--namespace", NAMESPACE, "--kube-version", kube]
        return self._run(values, "template", RELEASE, str(chart), *flags)

    def lint(self, values: Values, *, chart: Path = CHART) -> None:
        self._run(values, "lint", str(chart), "--strict")

    def _run(self, values: Values, *arguments: str) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values, file)
            file.flush()
            # Without a kubeconfig, so that no cluster is asked by accident.
            done = subprocess.run(
                [str(self.binary), *arguments, "--values", file.name],
                capture_output=True,
                text=True,
                check=False,
                env={"PATH": os.environ.get("PATH", ""), "HOME": tempfile.gettempdir()},
            )
        if done.returncode:
            raise Refused((done.stderr or done.stdout).strip())
        return done.stdout


def find_helm3() -> Helm3 | None:
    """HELM3, or `helm` on the path if it is of major 3."""
    named = os.environ.get("HELM3") or shutil.which("helm")
    if not named or not Path(named).exists():
        return None
    shown = subprocess.run(
        [named, "version", "--short"], capture_output=True, text=True, check=False
    ).stdout
    return Helm3(Path(named)) if shown.startswith("v3.") else None


def find_helm4() -> Helm4 | None:
    """The library, if it is installed."""
    try:
        return Helm4()
    except ImportError:
        return None


def documents(text: str) -> list[Document]:
    """The objects of a rendering. Refused when a template left something empty behind."""
    if "<no value>" in text or "%!" in text:
        raise Refused("a template printed a value that is not there")
    found = [one for one in yaml.load_all(text, _UniqueKeys) if one]
    return [dict(one) for one in found]


class _UniqueKeys(yaml.SafeLoader):
    """A key that comes twice in one mapping is an error: one of the two would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise Refused(f"{', '.join(sorted(twice))} comes twice at {node.start_mark}")
        return super().construct_mapping(node, deep)


def merged(*layers: Values) -> dict[str, Any]:
    """Later layers win, key by key; lists are replaced."""
    whole: dict[str, Any] = {}
    for layer in layers:
        _merge(whole, layer)
    return whole


def _merge(into: dict[str, Any], layer: Values) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = deepcopy(value)


def values_files() -> list[Path]:
    """values-*.yaml and ci/*.yaml of the chart."""
    return [*sorted(CHART.glob("values-*.yaml")), *sorted((CHART / "ci").glob("*.yaml"))]


def cases() -> dict[str, Values]:
    """Every set of values that must render: the defaults, each file, and production with GPUs."""
    found: dict[str, Values] = {"values.yaml": {}}
    for path in values_files():
        found[path.name] = yaml.safe_load(path.read_text()) or {}
    found["values-production.yaml + values-gpu.yaml"] = merged(
        found["values-production.yaml"], found["values-gpu.yaml"]
    )
    return found


def engines() -> Sequence[Helm]:
    """The Helms that are here."""
    return [helm for helm in (find_helm4(), find_helm3()) if helm is not None]
