"""The role that is given to operators grants every call of `plinth k8s`, and nothing else."""

from __future__ import annotations

from pathlib import Path

import yaml

from plinth.cluster.kubernetes_ops.calls import CALLS
from plinth.cluster.kubernetes_ops.failures import refused

ROLE = Path(__file__).parents[3] / "ops" / "kubernetes" / "operator-role.yaml"
Right = tuple[str, str, str]


def granted() -> dict[str, set[Right]]:
    return {
        one["kind"]: {
            (group, resource, verb)
            for rule in one["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for one in yaml.safe_load_all(ROLE.read_text())
    }


def test_every_call_is_granted_and_nothing_else() -> None:
    wanted: dict[str, set[Right]] = {"Role": set(), "ClusterRole": set()}
    for call in CALLS.values():
        kind = "Role" if call.namespaced else "ClusterRole"
        wanted[kind] |= {(call.group, call.resource, verb) for verb in call.verb.split(",") if verb}
    assert granted() == wanted


def test_paths_are_where_the_group_is() -> None:
    for call in CALLS.values():
        if not call.resource:
            continue
        prefix = f"/apis/{call.group}/" if call.group else "/api/v1/"
        assert call.path.startswith(prefix)
        resource, _, part = call.resource.partition("/")
        assert f"/{resource}" in call.path
        assert call.path.endswith(f"/{part}" if part else (f"/{resource}", "/{name}"))


def test_a_refusal_names_the_rule() -> None:
    said = refused(CALLS["patch rayservice"], "models", "no").message
    assert 'apiGroups: ["ray.io"], resources: ["rayservices"], verbs: ["patch"]' in said
    assert "kubectl -n models create role plinth-operator --verb=patch" in said
    assert "--resource=rayservices.ray.io," in said
