"""`plinth k8s logs`: several pods as one, followed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from kube_api import NAMESPACE, KubeApi
from kube_calls import Reply
from kube_cluster import error_of, plinth_k8s
from kube_release import CORE, pod, static_pods, static_release
from plinth.cluster.kubernetes_ops import logs
from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.release import find
from plinth.shared.errors import PermissionDenied

ONE, TWO = "plinth-inference-0", "plinth-inference-1"


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}.000000000Z"


@pytest.fixture(autouse=True)
def release(kube: KubeApi) -> None:
    static_release(kube)
    static_pods(kube)
    kube.logs[ONE] = [(at(1), "one loads"), (at(4), "one is ready")]
    kube.logs[TWO] = [(at(2), "two loads"), (at(3), "two\x1b[2J fails")]


@pytest.fixture
def api(kubeconfig: Path) -> Iterator[Api]:
    with Api.open(kubeconfig=kubeconfig) as opened:
        yield opened


def followed(api: Api, stage: str = "inference", lines: int = 10) -> Iterator[logs.Line]:
    return logs.follow(api, logs.selector(find(api), [stage]), lines)


def texts(lines: Iterator[logs.Line], count: int) -> list[tuple[str, str]]:
    return [(line.pod, line.text) for line in itertools.islice(lines, count)]


def test_pods_are_merged_by_time(kubeconfig: Path) -> None:
    result = plinth_k8s(kubeconfig, "logs", "inference")
    assert result.stdout.splitlines() == [
        f"{ONE} | one loads",
        f"{TWO} | two loads",
        f"{TWO} | two\ufffd[2J fails",  # a log can't steer the terminal
        f"{ONE} | one is ready",
    ]
    assert f"kubectl -n {NAMESPACE} logs -l app.kubernetes.io/part-of=plinth" in result.stderr
    assert "-c ray --prefix --tail=50" in result.stderr


def test_the_end_only_and_several_stages(kube: KubeApi, kubeconfig: Path) -> None:
    kube.logs["plinth-gateway-1"] = [(at(9), "a request")]
    result = plinth_k8s(kubeconfig, "logs", "inference", "gateway", "-n", "1")
    assert result.stdout.splitlines() == [
        f"{TWO} | two\ufffd[2J fails",
        f"{ONE} | one is ready",
        "plinth-gateway-1 | a request",
    ]
    containers = {c.path.split("/")[6]: c.query["container"] for c in kube.made("GET", "/log$")}
    assert containers[ONE] == "ray"
    assert containers["plinth-gateway-1"] == "gateway"


def test_before_the_last_restart(kube: KubeApi, kubeconfig: Path) -> None:
    kube.previous[ONE] = [(at(0), "out of memory")]
    result = plinth_k8s(kubeconfig, "logs", "inference", "--previous")
    assert f"{ONE} | out of memory" in result.stdout
    assert f"{TWO} | (no log: get pods/log: previous terminated container" in result.stdout


def test_following_takes_up_what_comes_and_who_comes(kube: KubeApi, api: Api) -> None:
    lines = followed(api)
    first = texts(lines, 4)
    assert sorted(first) == sorted(
        [(ONE, "one loads"), (ONE, "one is ready"), (TWO, "two loads"), (TWO, "two\x1b[2J fails")]
    )
    kube.logs[ONE].append((at(5), "one answers"))
    assert texts(lines, 1) == [(ONE, "one answers")]
    kube.logs["plinth-inference-2"] = [(at(6), "three loads")]
    kube.put(f"{CORE}/pods/plinth-inference-2", pod("inference", "10.0.2.9"))
    assert texts(lines, 1) == [("plinth-inference-2", "three loads")]


def test_a_restarted_container_is_read_on_without_repeats(kube: KubeApi, api: Api) -> None:
    kube.delete(f"{CORE}/pods/{TWO}")
    lines = followed(api)
    assert texts(lines, 2) == [(ONE, "one loads"), (ONE, "one is ready")]
    kube.end_logs(ONE)  # its container restarts; the kubelet ends the stream
    kube.logs[ONE].append((at(7), "one loads again"))
    assert texts(lines, 1) == [(ONE, "one loads again")]
    assert kube.made("GET", f"{ONE}/log$")[-1].query["sinceTime"] == at(4)


def test_a_stale_watch_is_listed_anew(kube: KubeApi, api: Api) -> None:
    kube.script("GET", "/pods$", Reply(503, "", {"Retry-After": "0"}))  # the first list
    lines = followed(api)
    assert len(texts(lines, 4)) == 4
    kube.forget()
    kube.logs["plinth-inference-2"] = [(at(8), "after the gap")]
    kube.put(f"{CORE}/pods/plinth-inference-2", pod("inference", "10.0.2.9"))
    kube.script("WATCH", "/pods$", Reply(410, "too old"))
    assert texts(lines, 1) == [("plinth-inference-2", "after the gap")]


def test_a_right_that_is_missing(kube: KubeApi, kubeconfig: Path, api: Api) -> None:
    kube.forbidden.add(("get", "pods/log"))
    said = error_of(plinth_k8s(kubeconfig, "logs", "inference"))
    assert "you may not get pods/log in serving" in said
    with pytest.raises(PermissionDenied, match="pods/log"):
        texts(followed(api), 1)


def test_following_what_has_ended(kubeconfig: Path) -> None:
    assert "can't be followed" in error_of(plinth_k8s(kubeconfig, "logs", "-f", "--previous"))
