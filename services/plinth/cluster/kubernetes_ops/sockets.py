"""Into a pod by websocket: a command run there, or a port of it on this machine's loopback.

The `kubernetes` client's websockets; what they raise becomes the errors of any other call.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.calls import CALLS
from plinth.cluster.kubernetes_ops.failures import failure
from plinth.shared.errors import DeadlineExceeded, Unavailable

_HANDSHAKE = re.compile(r"Handshake status (\d{3})")
_CHUNK = 1 << 16
_LOOK_S = 0.5


def run(
    api: Api,
    pod: str,
    container: str,
    command: Sequence[str],
    *,
    timeout_s: float,
    say: Callable[[str], object] = lambda text: None,
) -> int | None:
    """Exit code of `command` in a running pod; None when the connection broke before its end (the
    container went, for one). `say` gets what it prints. DeadlineExceeded."""
    from kubernetes.stream.ws_client import websocket_call  # noqa: PLC0415

    query = [
        *(("command", word) for word in command),
        ("container", container),
        ("stdout", "true"),
        ("stderr", "true"),
    ]
    client = _opened(api, "exec", pod, query, websocket_call, _preload_content=False)
    end = time.monotonic() + timeout_s
    try:
        while client.is_open():
            if time.monotonic() > end:
                raise DeadlineExceeded(f"{' '.join(command)} in {pod}: not done in {timeout_s:g} s")
            try:
                client.update(timeout=_LOOK_S)
            except Exception:  # noqa: BLE001  (of its websocket library, by any name: it broke)
                return None
            for text in (client.read_channel(1), client.read_channel(2)):
                if text:
                    say(text)
        try:
            code: int = client.returncode
        except (TypeError, KeyError, ValueError):  # it closed without a word
            return None
        return code
    finally:
        client.close()
        client.sock.shutdown()  # which `close` leaves out where the other side was first


@contextlib.contextmanager
def forwarded(api: Api, pod: str, port: int) -> Iterator[str]:
    """ "127.0.0.1:N" of a relay to a port of a pod, as `kubectl port-forward` makes one. Each
    connection has a websocket of its own. Tried once at the start: PermissionDenied, …"""
    _Forwarded(api, pod, port).close()
    with _Relay(lambda: _Forwarded(api, pod, port)) as relay:
        yield relay.address


class _Forwarded:
    """One connection to a port of a pod: `socket`, and the websocket behind it."""

    def __init__(self, api: Api, pod: str, port: int) -> None:
        from kubernetes.stream.ws_client import portforward_call  # noqa: PLC0415

        self._forward = _opened(api, "forward", pod, [("ports", str(port))], portforward_call)
        self.socket: socket.socket = self._forward.socket(port)._socket

    def close(self) -> None:
        """Ends it; the client's own thread closes the websocket, unless the pod was first."""
        self.socket.close()
        if not self._forward.connected:
            self._forward.websocket.shutdown()


def _opened(
    api: Api, name: str, pod: str, query: list[tuple[str, str]], opener: Any, **options: Any
) -> Any:
    import websocket  # noqa: PLC0415
    from kubernetes.client import ApiException  # noqa: PLC0415

    url, headers = api.prepared(name, (), {"name": pod})
    websocket.setdefaulttimeout(api.timeout_s)  # the client gives none of its own
    try:
        return opener(
            api.client.configuration, "GET", url, query_params=query, headers=headers, **options
        )
    except ApiException as error:
        text = str(error.reason)
        if (found := _HANDSHAKE.search(text)) is None:
            raise Unavailable(
                f"{CALLS[name].resource} of {pod} at {api.host}: {text}",
                reason="KUBERNETES_UNAVAILABLE",
            ) from error
        body = text.rpartition("-+-+- ")[2]
        raise failure(
            CALLS[name], int(found[1]), _plain(body), {}, api.namespace, api.host
        ) from error
    finally:
        websocket.setdefaulttimeout(None)


def _plain(body: str) -> str:
    """The library prints the body as Python does: b'…'."""
    if body[:2] in {"b'", 'b"'}:
        return body[2:-1].encode().decode("unicode_escape", "replace")
    return body


class _Relay:
    """Passes what comes to a loopback port on to connections that `connect` makes."""

    def __init__(self, connect: Callable[[], _Forwarded]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: dict[socket.socket, _Forwarded] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> _Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for near, far in self._open.items():
                for one in (near, far.socket):
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(timeout=5)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._connect()
            except Exception:  # noqa: BLE001  (the caller sees its connection end)
                near.close()
                continue
            with self._lock:
                self._open[near] = far
            thread = threading.Thread(target=self._pass_on, args=(near, far), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, near: socket.socket, far: _Forwarded) -> None:
        """Both ways until both have ended."""
        back = threading.Thread(target=_copy, args=(far.socket, near), daemon=True)
        back.start()
        _copy(near, far.socket)
        back.join()
        with self._lock:
            self._open.pop(near, None)
        near.close()
        far.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
