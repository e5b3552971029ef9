"""Whose a field is after `plinth k8s` changed it, by the entries of `managedFields`."""

from __future__ import annotations

from typing import Any

from plinth.cluster.kubernetes_ops.owners import owned_by_chart

Json = dict[str, Any]
REPLICAS = ("spec", "replicas")
GROUPS = ("spec", "rayClusterConfig", "workerGroupSpecs")
LABELS: Json = {"f:labels": {"f:helm.sh/chart": {}}}


def entry(manager: str, operation: str, spec: Json, subresource: str = "", **more: Json) -> Json:
    fields = {"f:spec": spec, **more}
    return {
        "manager": manager,
        "operation": operation,
        "subresource": subresource,
        "fieldsV1": fields,
    }


def fields_of(entries: list[Json], manager: str) -> Json:
    (found,) = [one for one in entries if one["manager"] == manager]
    fields: Json = found["fieldsV1"]
    return fields


def test_a_number_goes_back_to_who_applied_the_chart() -> None:
    entries = [
        entry("helm", "Apply", {"f:template": {}}, **{"f:metadata": LABELS}),
        entry("plinth-k8s", "Update", {"f:replicas": {}}, "scale"),
        entry("kubectl", "Update", {"f:replicas": {}, "f:paused": {}}),
    ]
    after = owned_by_chart(entries, [REPLICAS])
    assert fields_of(after, "helm")["f:spec"] == {"f:template": {}, "f:replicas": {}}
    assert fields_of(after, "kubectl") == {"f:spec": {"f:paused": {}}}  # its other field stays
    assert {one["manager"] for one in after} == {"helm", "kubectl"}


def test_items_of_a_keyed_list_go_back_with_it() -> None:
    """As KubeRay's worker groups would be, if its definition named a key."""
    ours = {'k:{"groupName":"reward"}': {"f:replicas": {}}}
    theirs = {".": {}, 'k:{"groupName":"reward"}': {".": {}, "f:groupName": {}}}

    def spec(groups: Json) -> Json:
        return {"f:rayClusterConfig": {"f:workerGroupSpecs": groups}}

    entries = [
        entry("argocd", "Apply", spec(theirs), **{"f:metadata": LABELS}),
        entry("plinth-k8s", "Update", spec(ours)),
    ]
    (after,) = owned_by_chart(entries, [GROUPS])
    key = 'k:{"groupName":"reward"}'
    groups = after["fieldsV1"]["f:spec"]["f:rayClusterConfig"]["f:workerGroupSpecs"]
    assert groups == {".": {}, key: {".": {}, "f:groupName": {}, "f:replicas": {}}}


def test_what_others_apply_or_tell_of_its_status_is_theirs() -> None:
    entries = [
        entry("helm", "Apply", {"f:template": {}}, **{"f:metadata": LABELS}),
        entry("platform", "Apply", {"f:replicas": {}}),
        entry("kube-controller-manager", "Update", {"f:replicas": {}}, "status"),
    ]
    assert owned_by_chart(entries, [REPLICAS]) == entries


def test_an_object_that_nobody_applied_as_the_charts_stays_as_it_is() -> None:
    entries = [entry("kubectl", "Update", {"f:replicas": {}})]
    assert owned_by_chart(entries, [REPLICAS]) == entries
