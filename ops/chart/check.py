"""`make chart`: the chart linted, rendered and cross-checked, with every Helm and kubectl at hand.

    python ops/chart/check.py [--crds DIR] [--require helm4 --require helm3]

For each set of values (the defaults, values-*.yaml, ci/): lint and render, each by Helm 3 and 4,
which must agree; schemas of the oldest and the newest Kubernetes; then what refers to what. Ends
with code 1 and every finding, or 0 and one line per set.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import access
import monitoring
import owners
import ray_rules
import references
import rendering
import routes
import running
import values_readme
import values_schema
import workloads
from kinds import NEWEST, OLDEST, OTHERS, Kinds
from release import Release, title

# What Helm makes anew each time it can't see the cluster.
_RANDOM = re.compile(
    r"^( +(?:cluster-token|auth_token|redis-password|api-key|checksum/secrets): ).*$", re.MULTILINE
)


def check_case(
    values: Mapping[str, Any], helms: Sequence[rendering.Helm], kinds: Kinds
) -> tuple[list[str], int]:
    """Findings of one set of values, and how many objects it makes."""
    whole = rendering.merged(yaml.safe_load((rendering.CHART / "values.yaml").read_text()), values)
    texts, findings = {}, []
    for helm in helms:
        try:
            helm.lint(values)
            for kube in (OLDEST, NEWEST):
                texts[f"{helm.name} for {kube}"] = helm.render(values, kube=kube)
        except rendering.Refused as refused:
            findings.append(f"{helm.name}: {refused}")
    if findings:
        return findings, 0
    found = {name: _comparable(text) for name, text in texts.items()}
    first = next(iter(found))
    findings += [
        f"{name} renders other objects than {first}"
        for name in found
        if found[name] != found[first]
    ]
    release = Release(rendering.documents(texts[first]))
    findings += check_release(release, whole)
    for version in (OLDEST, NEWEST):
        findings += kinds.check(release, version)
    findings += _kubectl(release)
    return findings, len(release.documents)


def check_release(release: Release, values: Mapping[str, Any]) -> Iterator[str]:
    """The cross-checks, which need neither Helm nor schemas."""
    if len(release.others) > len(values["extraObjects"]):
        told = ", ".join(title(one) for one in release.others)
        yield f"not all of these are extraObjects, and none says that it is the chart's: {told}"
    yield from references.check(release, values)
    yield from running.check(release)
    yield from access.check(release)
    yield from monitoring.check(release)
    yield from owners.check(release)
    yield from ray_rules.check(release)
    yield from routes.check(release, values)
    yield from workloads.check(release, values)


def _comparable(text: str) -> list[dict[str, Any]]:
    documents = rendering.documents(_RANDOM.sub(r"\1random", text))
    return sorted(documents, key=lambda one: (one["kind"], one["metadata"]["name"]))


def _kubectl(release: Release) -> Iterator[str]:
    """What kubectl reads without a server: workloads into its own types, and all ids but once."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        whole, workloads = Path(folder) / "all.yaml", Path(folder) / "workloads.yaml"
        whole.write_text(yaml.safe_dump_all(release.documents))
        (Path(folder) / "kustomization.yaml").write_text("resources: [all.yaml]\n")
        kinds = ("Deployment", "StatefulSet", "Pod")
        found = [one for one in release.documents if one["kind"] in kinds]
        workloads.write_text(yaml.safe_dump_all(found))
        for arguments in (
            ["kustomize", folder],
            ["set", "env", "--local", "-f", str(workloads), "CHECKED=yes", "-o", "name"],
        ):
            done = subprocess.run(
                [kubectl, *arguments], capture_output=True, text=True, check=False
            )
            if done.returncode:
                yield f"kubectl {arguments[0]}: {done.stderr.strip()[:300]}"


def _generated() -> Iterator[str]:
    if values_schema.TARGET.read_text() != values_schema.text():
        yield "values.schema.json is out of date: run ops/chart/values_schema.py"
    if values_readme.TARGET.read_text() != values_readme.text():
        yield "the chart's README.md is out of date: run ops/chart/values_readme.py"
    for path in values_readme.undocumented():
        yield f"values.yaml: {path} has no comment that says what it is"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="check.py")
    parser.add_argument("--crds", type=Path, help="folder of CustomResourceDefinitions")
    parser.add_argument("--require", action="append", default=[], choices=["helm3", "helm4"])
    given = parser.parse_args(arguments)
    helms = rendering.engines()
    there = {helm.name.replace(" ", "").lower() for helm in helms}
    missing = set(given.require) - there
    if missing or not helms:
        absent = ", ".join(sorted(missing)) or "any Helm"
        print(f"not here: {absent}; `make chart` gets Helm 3 and 4", file=sys.stderr)
        return 2
    kinds = Kinds(given.crds)
    print(f"by {', '.join(helm.name for helm in helms)}; Kubernetes {OLDEST} and {NEWEST}")
    for (version, kind), source in kinds.sources.items():
        if (version, kind) in OTHERS:
            print(f"{kind} {version}: by {source}")
    if shutil.which("kubectl") is None:
        print("kubectl is not here (Debian: kubernetes-client); its checks are left out")
    failed = list(_generated())
    for name, values in rendering.cases().items():
        findings, objects = check_case(values, helms, kinds)
        print(f"{name}: {f'{objects} objects' if not findings else 'WRONG'}")
        failed += [f"{name}: {one}" for one in findings]
    for one in failed:
        print(one, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
