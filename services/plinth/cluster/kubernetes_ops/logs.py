"""`plinth k8s logs`: several pods' logs as one, by time; followed through restarts and new pods."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from plinth.cluster.kubernetes_ops import watching
from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.cluster.kubernetes_ops.outcome import kubectl
from plinth.cluster.kubernetes_ops.release import Release, component_of, container_of
from plinth.shared.errors import DeadlineExceeded, InvalidArgument, NotFound, PlinthError

QUIET_S = 3600.0  # a log may say nothing for long
_AGAIN_S = 1.0
_FOREVER_S = 10 * 365 * 86_400.0


@dataclass(frozen=True, order=True)
class Line:
    """One line. time: RFC 3339, as the kubelet wrote it down; empty for a word of our own."""

    time: str
    pod: str
    text: str


def selector(release: Release, stages: Iterable[str]) -> str:
    """Selects the pods of some stages, or all."""
    names = [release.check_component(stage) for stage in stages]
    if not names:
        return release.selector
    return f"{release.selector},app.kubernetes.io/component in ({','.join(names)})"


def read(
    api: Api, picked: str, lines: int, *, previous: bool = False
) -> Generator[Line, None, None]:
    """The last `lines` of each pod's log, merged by time. previous: of the containers before the
    last restart."""
    pods = api.items("list pods", picked)
    if not pods:
        raise NotFound(f"no pod has the labels {picked}")
    query = {"timestamps": "true", "tailLines": str(lines)}
    if previous:
        query["previous"] = "true"
    yield from heapq.merge(*(_of_pod(api, pod, query) for pod in pods))


def follow(api: Api, picked: str, lines: int) -> Generator[Line, None, None]:
    """The last `lines` of each, then whatever comes, of pods that start later too. Never ends by
    itself; close it."""
    told: queue.Queue[Line | PlinthError] = queue.Queue(10_000)
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(api, picked, lines, told, done), daemon=True)
    watcher.start()
    try:
        while True:
            try:
                line = told.get(timeout=0.2)
            except queue.Empty:
                if not watcher.is_alive():
                    return
                continue
            if isinstance(line, PlinthError):
                raise line
            yield line
    finally:
        done.set()


def equivalents(release: Release, stages: list[str], lines: int, *, follows: bool) -> list[str]:
    """kubectl's own merging, a component each."""
    flags = ["--prefix", f"--tail={lines}", *(["-f"] if follows else [])]
    return [
        kubectl(release.namespace, "logs", "-l", release.of(one), "-c", container_of(one), *flags)
        for one in stages or release.components
    ]


def _of_pod(api: Api, pod: Json, query: dict[str, str]) -> Iterator[Line]:
    name = pod["metadata"]["name"]
    query = query | {"container": container_of(component_of(pod))}
    try:
        for line in api.lines("read log", query, quiet_s=QUIET_S, name=name):
            when, _, text = line.partition(" ")
            yield Line(when, name, text)
    except (NotFound, InvalidArgument) as error:  # it is gone, or its container has not begun
        yield Line("", name, f"(no log: {error.message})")


def _watch(
    api: Api,
    picked: str,
    lines: int,
    told: queue.Queue[Line | PlinthError],
    done: threading.Event,
) -> None:
    """A reader for each pod that runs."""
    readers: dict[str, threading.Thread] = {}
    first = True
    try:
        for pods in watching.pods(api, picked, _FOREVER_S):
            if done.is_set():
                return
            if first and not pods:
                told.put(Line("", "plinth", f"(no pod has the labels {picked} yet)"))
            for pod in pods.values():
                uid = pod["metadata"]["uid"]
                if uid not in readers and pod.get("status", {}).get("phase") == "Running":
                    args = (api, pod, lines if first else 1_000_000, told, done)
                    readers[uid] = threading.Thread(target=_tail, args=args, daemon=True)
                    readers[uid].start()
            first = False
    except PlinthError as error:
        told.put(error)


def _tail(
    api: Api,
    pod: Json,
    lines: int,
    told: queue.Queue[Line | PlinthError],
    done: threading.Event,
) -> None:
    """One pod's log to its end; opened again where a container restarts."""
    query = {"timestamps": "true", "follow": "true", "tailLines": str(lines)}
    last = Line("", "", "")
    while not done.is_set():
        began = time.monotonic()
        try:
            for line in _of_pod(api, pod, query):
                if done.is_set():
                    return
                if line.time and (line.time < last.time or line == last):
                    continue  # of the second that was asked for again
                last = line if line.time else last
                told.put(line)
            if not _runs(api, pod):
                return
        except DeadlineExceeded:
            pass
        except PlinthError as error:
            told.put(error)
            return
        if last.time:
            query = {"timestamps": "true", "follow": "true", "sinceTime": last.time}
        done.wait(max(0.0, _AGAIN_S - (time.monotonic() - began)))


def _runs(api: Api, pod: Json) -> bool:
    """Whether the same pod is still there and not over."""
    try:
        now = api.call("get pod", name=pod["metadata"]["name"])
    except NotFound:
        return False
    same = now["metadata"]["uid"] == pod["metadata"]["uid"]
    return bool(same and now.get("status", {}).get("phase") in {"Running", "Pending"})
