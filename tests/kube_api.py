"""An API server of Kubernetes' shape on loopback, for the real `kubernetes` client.

It keeps objects with versions, and does what the operations rely on: lists by label and field,
watches that go stale (410), writes that conflict (409), scale and eviction, logs that are
followed, and websockets into pods. Whatever else a server may answer is scripted per request.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.websockets import WebSocket

from kube_calls import Call, Loopback, Reply, refused
from kube_objects import Json, is_kind, merged, patched, scale_of, selected
from kube_owners import defaulted, updated
from kube_sockets import execute, forward
from patience import PATIENCE_S

TOKEN = "a-bearer-token-for-tests"
NAMESPACE = "serving"
_PATH = re.compile(
    r"^/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<ns>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?$"
)


class KubeApi(Loopback):
    """The server and what it knows. Change it from the test's thread."""

    asks_who = True  # for a token; Go's clients send none without TLS

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.objects: dict[str, Json] = {}
        self.version = {"major": "1", "minor": "33", "gitVersion": "v1.33.4"}
        self.groups: dict[str, list[str]] = {}  # "ray.io/v1" → resources
        self.logs: dict[str, list[tuple[str, str]]] = {}  # pod → (time, line)
        self.previous: dict[str, list[tuple[str, str]]] = {}
        self.ended: set[str] = set()  # pods whose followed logs end
        self.forbidden: set[tuple[str, str]] = set()  # verb, resource
        self.executed: list[tuple[str, list[str]]] = []
        self.exec_code: Callable[[str, list[str]], int | Json | None] = lambda pod, command: 0
        self.ports: dict[int, int] = {}  # of pods → on this machine
        self.on_evict: Callable[[str], object] = self.delete
        self._scripts: list[tuple[str, re.Pattern[str], list[Reply]]] = []
        self._events: list[tuple[int, str, Json]] = []
        self._version = 100
        self._oldest = 0  # versions up to this one are forgotten
        self._lock = threading.RLock()

    # -- what a test says ----------------------------------------------------------------------

    def put(self, path: str, found: Json) -> Json:
        """Creates or replaces the object at `path`."""
        with self._lock:
            kind = "MODIFIED" if path in self.objects else "ADDED"
            self._version += 1
            meta = {"name": path.rpartition("/")[2], "uid": f"uid-{self._version}"}
            if (found_in := _PATH.match(path)) is not None and found_in["ns"]:
                meta["namespace"] = found_in["ns"]
            before = self.objects.get(path, {}).get("metadata", {})
            keep = {"uid": before["uid"]} if "uid" in before else {}
            stored = json.loads(json.dumps(found))
            stored["metadata"] = {**meta, **keep, **stored.get("metadata", {})}
            stored["metadata"]["resourceVersion"] = str(self._version)
            self.objects[path] = stored
            self._events.append((self._version, kind, json.loads(json.dumps(stored))))
            return stored

    def delete(self, path: str) -> None:
        with self._lock:
            gone = self.objects.pop(path)
            self._version += 1
            gone["metadata"]["resourceVersion"] = str(self._version)
            self._events.append((self._version, "DELETED", gone))

    def forget(self) -> None:
        """Watches from any version so far are too old."""
        with self._lock:
            self._oldest = self._version

    def end_logs(self, pod: str) -> None:
        """Ends the stream of a pod's log that is being followed; returns once it has."""
        self.ended.add(pod)
        end = time.monotonic() + PATIENCE_S
        while pod in self.ended:
            assert time.monotonic() < end, f"nobody follows {pod}"
            time.sleep(0.005)

    def script(self, method: str, path: str, *replies: Reply) -> None:
        """The next requests whose path matches are answered so. method: WATCH for a watch."""
        with self._lock:
            self._scripts.append((method, re.compile(path), list(replies)))

    def made(self, method: str, path: str) -> list[Call]:
        """Calls so far whose path matches."""
        return [c for c in list(self.calls) if c.method == method and re.search(path, c.path)]

    def kubeconfig(self, folder: Path, token: str = TOKEN, server: str = "") -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": server or self.url}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
            ],
        }
        path = folder / "kubeconfig.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    # -- the server ----------------------------------------------------------------------------

    async def _http(self, request: Request) -> Response:
        body = await request.body()
        call = Call(
            request.method,
            request.url.path,
            dict(request.query_params),
            json.loads(body) if body else None,
            request.headers.get("user-agent", ""),
        )
        with self._lock:
            self.calls.append(call)
        if self.asks_who and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return refused(401, "Unauthorized")
        if (reply := self._scripted(call)) is not None:
            while reply.status == 0 and not self._stopping:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return refused(reply.status, reply.message, reply.headers, reply.details)
        if (said := self._refusal(call)) is not None:
            return said
        with self._lock:
            return self._answer(call, request.headers.get("content-type", ""))

    def _scripted(self, call: Call) -> Reply | None:
        asked = "WATCH" if call.query.get("watch") == "true" else call.method
        with self._lock:
            for method, pattern, replies in self._scripts:
                if method == asked and replies and pattern.search(call.path):
                    return replies.pop(0)
        return None

    def _refusal(self, call: Call) -> Response | None:
        found = _PATH.match(call.path)
        if found is None:
            return None
        resource = found["resource"] + (f"/{found['sub']}" if found["sub"] else "")
        verb = {"POST": "create", "PATCH": "patch"}.get(call.method)
        verb = verb or ("get" if found["name"] else "watch" if "watch" in call.query else "list")
        if (verb, resource) not in self.forbidden:
            return None
        where = f' in the namespace "{found["ns"]}"' if found["ns"] else ""
        return refused(
            403, f'{resource} is forbidden: User "jane" cannot {verb} resource "{resource}"{where}'
        )

    def _answer(self, call: Call, content: str) -> Response:
        if call.path == "/version":
            return JSONResponse(self.version)
        if group := re.fullmatch(r"/apis/([^/]+/[^/]+)", call.path):
            if group[1] not in self.groups:
                return refused(404, "the server could not find the requested resource")
            names = [{"name": name} for name in self.groups[group[1]]]
            return JSONResponse({"kind": "APIResourceList", "resources": names})
        if call.path.endswith("/selfsubjectaccessreviews"):
            asked = call.body["spec"]["resourceAttributes"]
            allowed = (asked["verb"], asked["resource"]) not in self.forbidden
            return JSONResponse({**call.body, "status": {"allowed": allowed}})
        found = _PATH.match(call.path)
        if found is None:
            return refused(404, f"no such path: {call.path}")
        if not found["name"]:
            if call.query.get("watch") == "true":
                return StreamingResponse(self._watch(call), media_type="application/json")
            items = [
                o for p, o in sorted(self.objects.items()) if selected(p, o, call.path, call.query)
            ]
            metadata = {"resourceVersion": str(self._version)}
            return JSONResponse({"kind": "List", "metadata": metadata, "items": items})
        path = call.path.removesuffix(f"/{found['sub']}") if found["sub"] else call.path
        if path not in self.objects:
            return refused(404, f'{found["resource"]} "{found["name"]}" not found')
        return self._of_object(call, path, found["sub"] or "", content)

    def _of_object(self, call: Call, path: str, sub: str, content: str) -> Response:
        now = self.objects[path]
        if sub == "log":
            return self._log(call, path.rpartition("/")[2])
        if sub == "eviction":
            self.on_evict(path)
            return JSONResponse({"kind": "Status", "status": "Success"}, 201)
        if call.method == "GET":
            return JSONResponse(scale_of(now) if sub == "scale" else now)
        change = patched if "json-patch" in content else merged
        changed = change(now, call.body)
        if changed["metadata"]["resourceVersion"] != now["metadata"]["resourceVersion"]:
            return refused(
                409, f"Operation cannot be fulfilled on {path}: the object has been modified"
            )
        stored = self.put(path, updated(now, defaulted(changed), call.manager, sub))
        return JSONResponse(scale_of(stored) if sub == "scale" else stored)

    async def _watch(self, call: Call) -> AsyncIterator[str]:
        seen = int(call.query["resourceVersion"])
        loop = asyncio.get_running_loop()
        end = loop.time() + float(call.query.get("timeoutSeconds", "30"))
        if seen < self._oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            yield json.dumps({"type": "ERROR", "object": gone}) + "\n"
            return
        while loop.time() < end and not self._stopping:
            with self._lock:
                new = [event for event in self._events if event[0] > seen]
            for version, kind, changed in new:
                seen = version
                meta = changed["metadata"]
                if selected(
                    f"{call.path}/{meta['name']}", changed, call.path, call.query
                ) and is_kind(call.path, changed):
                    yield json.dumps({"type": kind, "object": changed}) + "\n"
            await asyncio.sleep(0.01)

    def _log(self, call: Call, pod: str) -> Response:
        if call.query.get("previous"):
            if pod not in self.previous:
                return refused(400, f'previous terminated container in pod "{pod}" not found')
            return StreamingResponse(iter([_line(*one) for one in self.previous[pod]]))
        lines = self.logs.setdefault(pod, [])
        since = call.query.get("sinceTime", "")[:19]
        first = max(0, len(lines) - int(call.query.get("tailLines", len(lines))))

        async def follow() -> AsyncIterator[str]:
            at = first
            while not self._stopping:
                while at < len(lines):
                    if lines[at][0][:19] >= since:
                        yield _line(*lines[at])
                    at += 1
                if call.query.get("follow") != "true" or pod in self.ended:
                    self.ended.discard(pod)
                    return
                await asyncio.sleep(0.01)

        return StreamingResponse(follow(), media_type="text/plain")

    async def _socket(self, socket: WebSocket) -> None:
        found = _PATH.match(socket.url.path)
        assert found is not None
        call = Call("GET", socket.url.path, dict(socket.query_params))
        with self._lock:
            self.calls.append(call)
        said = self._refusal(call)
        if (reply := self._scripted(call)) is not None:
            said = refused(reply.status, reply.message)
        if socket.headers.get("authorization") != f"Bearer {TOKEN}":
            said = refused(401, "Unauthorized")
        if said is not None:
            await socket.send_denial_response(said)
            return
        await socket.accept(subprotocol="v4.channel.k8s.io")
        if found["sub"] == "exec":
            await execute(socket, found["name"], self.executed, self.exec_code)
        else:
            await forward(socket, self.ports[int(socket.query_params["ports"])])


def _line(when: str, text: str) -> str:
    return f"{when} {text}\n"
