"""How calls to the Kubernetes API fail, and what is done about it: for every command alike."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kube_api import NAMESPACE, KubeApi
from kube_calls import Reply
from kube_cluster import error_of, plinth_k8s
from kube_release import APPS, static_pods, static_release
from patience import PATIENCE_S
from plinth.cluster.kubernetes_ops.api import CONFLICTS, Api
from plinth.shared.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    PlinthError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

# Each command, as far as its first call.
COMMANDS = (
    ("status",),
    ("scale", "reward", "2"),
    ("scale", "model/chat", "2"),
    ("rollout", "chat", "chat@2"),
    ("drain", "plinth-reward-0"),
    ("logs",),
    ("doctor",),
)


@pytest.fixture
def api(kubeconfig: Path) -> Iterator[Api]:
    with Api.open(kubeconfig=kubeconfig, timeout_s=5) as opened:
        yield opened


@pytest.fixture
def waits(kubeconfig: Path) -> Iterator[tuple[Api, list[float]]]:
    """An api that notes its pauses instead of taking them."""
    told: list[float] = []
    with Api.open(kubeconfig=kubeconfig) as opened:
        yield Api(opened.client, NAMESPACE, pause=told.append), told


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(401, "Unauthorized"), Unauthenticated, "to list deployments takes a valid login"),
        (Reply(403, "no"), PermissionDenied, 'resources: ["deployments"], verbs: ["list"]'),
        (Reply(429, "slow", {"Retry-After": "3600"}), ResourceExhausted, "slow"),
        (Reply(500, "etcd is away"), Unavailable, "etcd is away"),
        (Reply(0), DeadlineExceeded, "did not answer within 0.2 s; --timeout"),
    ],
    ids=["401", "403", "429", "500", "never"],
)
def test_every_command_says_what_was_wrong(
    kube: KubeApi,
    kubeconfig: Path,
    command: tuple[str, ...],
    reply: Reply,
    kind: type[PlinthError],
    words: str,
) -> None:
    static_release(kube)
    kube.script("GET", "/deployments$", reply)
    # Short where none comes: a busy machine may take a fifth of a second for any other.
    waits = ("--timeout", "0.2") if reply.status == 0 else ()
    result = plinth_k8s(kubeconfig, *waits, *command)
    assert words in error_of(result)
    assert isinstance(result.exception, kind)
    assert result.exit_code == 1


def test_throttling_is_waited_out_as_long_as_the_server_says(
    kube: KubeApi, waits: tuple[Api, list[float]]
) -> None:
    api, told = waits
    kube.script(
        "GET", "/pods$", Reply(429, "", {"Retry-After": "7"}), Reply(503, "", {"Retry-After": "2"})
    )
    kube.script("GET", "/pods$", Reply(429))
    assert api.items("list pods") == []
    assert told == [7.0, 2.0, 1.0]
    assert len(kube.made("GET", "/pods$")) == 4


def test_patience_ends(kube: KubeApi, waits: tuple[Api, list[float]]) -> None:
    api, told = waits
    kube.script("GET", "/pods$", Reply(429, "busy", {"Retry-After": "61"}))
    with pytest.raises(ResourceExhausted, match="busy") as raised:
        api.items("list pods")
    assert raised.value.retry_after_s == 61
    assert told == []


def test_a_conflict_is_tried_again_on_a_fresh_read(kube: KubeApi, api: Api) -> None:
    static_release(kube)
    path = f"{APPS}/statefulsets/plinth-reward"
    seen: list[str] = []

    def change() -> None:
        now = api.call("get statefulset", name="plinth-reward")
        seen.append(now["metadata"]["resourceVersion"])
        if len(seen) < 3:  # somebody else writes between our read and our write
            kube.put(path, kube.objects[path])
        version = {"resourceVersion": now["metadata"]["resourceVersion"]}
        body = {"metadata": version, "spec": {"replicas": 5}}
        api.call("patch statefulset scale", name="plinth-reward", body=body)

    api.fresh(change)
    assert len(set(seen)) == 3
    assert kube.objects[path]["spec"]["replicas"] == 5


def test_conflicts_without_end_are_told(kube: KubeApi, waits: tuple[Api, list[float]]) -> None:
    api, told = waits
    kube.script("GET", "/pods/x$", *[Reply(409, "modified") for _ in range(CONFLICTS)])
    with pytest.raises(Aborted, match="modified"):
        api.fresh(lambda: api.call("get pod", name="x"))
    assert len(told) == CONFLICTS - 1


def test_a_server_that_is_not_there(tmp_path: Path, kube: KubeApi) -> None:
    path = kube.kubeconfig(tmp_path, server="http://127.0.0.1:1")
    there = pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1 can't be reached")
    with Api.open(kubeconfig=path) as api, there:
        api.call("version")


def test_a_server_without_tls(tmp_path: Path, kube: KubeApi) -> None:
    path = kube.kubeconfig(tmp_path, server=kube.url.replace("http", "https"))
    kinds = (FailedPrecondition, Unavailable)
    with Api.open(kubeconfig=path) as api, pytest.raises(kinds, match=r"https://127\.0\.0\.1"):
        api.call("version")


def test_the_token_is_never_told(tmp_path: Path, kube: KubeApi) -> None:
    path = kube.kubeconfig(tmp_path, token="a-very-secret-token")
    said = error_of(plinth_k8s(path, "status"))
    assert "Log in again" in said
    assert "a-very-secret-token" not in said


def test_no_kubeconfig_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="no kubeconfig: give --kubeconfig, set KUBE"):
        Api.open()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("{]", "can't be used"),
        ("current-context: none\ncontexts: []\nclusters: []\nusers: []\n", "none"),
    ],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(FailedPrecondition, match=words):
        Api.open(kubeconfig=path)
    with pytest.raises(FailedPrecondition, match="can't be used"):
        Api.open(kubeconfig=tmp_path / "absent.yaml")


def test_an_unknown_context(kubeconfig: Path) -> None:
    with pytest.raises(FailedPrecondition, match="nowhere"):
        Api.open(kubeconfig=kubeconfig, context="nowhere")


def test_the_rest_door_is_refused(kubeconfig: Path) -> None:
    result = plinth_k8s(kubeconfig, "status", url="http://127.0.0.1:8080")
    assert isinstance(result.exception, InvalidArgument)
    assert "give host:port of the gRPC one" in error_of(result)


def test_a_part_of_status_that_may_not_be_asked_is_named(kube: KubeApi, kubeconfig: Path) -> None:
    static_release(kube)
    static_pods(kube)
    kube.forbidden.add(("list", "events"))
    found = json.loads(plinth_k8s(kubeconfig, "status", "--json", key="").stdout)
    assert "you may not list events in serving" in found["unknown"]["events"]
    assert {one["stage"]: one["ready"] for one in found["stages"]}["inference"] == 2


def test_time_outs_are_bounded(kube: KubeApi, kubeconfig: Path) -> None:
    kube.script("GET", "/deployments$", Reply(0))
    began = time.monotonic()
    plinth_k8s(kubeconfig, "--timeout", "0.3", "status")
    assert time.monotonic() - began < PATIENCE_S
