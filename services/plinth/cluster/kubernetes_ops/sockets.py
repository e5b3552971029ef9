"""Into a pod by websocket: a command run there, or a port of it on this machine's loopback.

The `kubernetes` client's websockets; what they raise becomes the errors of any other call.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.calls import CALLS
from plinth.cluster.kubernetes_ops.failures import failure
from plinth.shared.errors import DeadlineExceeded, Unavailable

_HANDSHAKE = re.compile(r"Handshake status (\d{3})")
_CHUNK = 1 << 16
_LOOK_S = 0.5


@dataclass(frozen=True)
class CommandEnd:
    """How a command in a pod ended. code: its exit code; None where nobody told one, which is not
    0: `why` says what was told instead."""

    code: int | None
    why: str = ""


def run(
    api: Api,
    pod: str,
    container: str,
    command: Sequence[str],
    *,
    timeout_s: float,
    say: Callable[[str], object] = lambda text: None,
) -> CommandEnd:
    """Runs `command` in a running pod. `say` gets what it prints. DeadlineExceeded. Without a code
    when the connection broke before its end (the container went, for one), or when the command was
    never begun (no such container, a runtime that fails)."""
    from kubernetes.stream.ws_client import ERROR_CHANNEL, websocket_call  # noqa: PLC0415

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
            except Exception as error:  # noqa: BLE001  (of its websocket library, by any name)
                return CommandEnd(None, f"the connection to it broke: {error}")
            for text in (client.read_channel(1), client.read_channel(2)):
                if text:
                    say(text)
        return _end(client.read_channel(ERROR_CHANNEL))
    finally:
        client.close()
        client.sock.shutdown()  # which `close` leaves out where the other side was first


def _end(status: str) -> CommandEnd:
    """From the Status that the API server sends at the end, on a channel of its own."""
    if not status:
        return CommandEnd(None, "the connection to it closed without a word of its end")
    try:
        told: Any = json.loads(status)
    except ValueError:
        return CommandEnd(None, status.strip()[:300])
    if told.get("status") == "Success":
        return CommandEnd(0)
    causes = (told.get("details") or {}).get("causes") or []
    codes = [str(one.get("message")) for one in causes if one.get("reason") == "ExitCode"]
    if codes and codes[0].isdecimal():
        return CommandEnd(int(codes[0]))
    return CommandEnd(None, str(told.get("message") or status)[:300])


@contextlib.contextmanager
def forwarded(api: Api, pod: str, port: int) -> Iterator[str]:
    """ "127.0.0.1:N" of a relay to a port of a pod, as `kubectl port-forward` makes one. Each
    connection has a websocket of its own. Tried once at the start: PermissionDenied, …"""

    def connect() -> Any:
        return _opened(api, "forward", pod, [("ports", str(port))], _forwarding)

    connect().shutdown()
    with _Relay(connect) as relay:
        yield relay.address


def _forwarding(configuration: Any, _: str, url: str, *, query_params: Any, headers: Any) -> Any:
    # Not the client's own forwarding: its thread dies with a traceback when a connection breaks.
    from kubernetes.stream.ws_client import create_websocket, get_websocket_url  # noqa: PLC0415

    opened = create_websocket(configuration, get_websocket_url(url, query_params), headers)
    opened.settimeout(None)
    return opened


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
    except (ApiException, websocket.WebSocketException, OSError) as error:
        text = str(getattr(error, "reason", None) or error)
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
    """Passes what comes to a loopback port on to websockets that `connect` opens."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
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
            for one in self._open:
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
            with self._lock:
                self._open.add(near)
            thread = threading.Thread(target=self._serve, args=(near,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, near: socket.socket) -> None:
        """One connection. When it breaks at either end, the other end sees it end."""
        far = None
        try:
            far = self._connect()
            begun: set[int] = set()
            while _passed(near, far, begun):
                pass
        except Exception:  # noqa: BLE001  (of sockets, TLS, the websocket library, by any name)
            return
        finally:
            with self._lock:
                self._open.discard(near)
            near.close()
            if far is not None:
                far.shutdown()


def _passed(near: socket.socket, far: Any, begun: set[int]) -> bool:
    """Waits for bytes from either end and passes them on; whether both are open still.

    Channel 0 is data, 1 the pod's complaints; each begins with a frame that names the port, and is
    in `begun` from then on.
    """
    from websocket import ABNF  # noqa: PLC0415

    buffered = isinstance(far.sock, ssl.SSLSocket) and far.sock.pending()
    readable = [far.sock] if buffered else select.select([far.sock, near], [], [])[0]
    if near in readable:
        data = near.recv(_CHUNK)
        if not data:
            return False
        far.send_binary(b"\x00" + data)
    if far.sock in readable:
        code, frame = far.recv_data_frame(True)
        if code == ABNF.OPCODE_CLOSE:
            return False
        if code == ABNF.OPCODE_BINARY:
            channel, data = frame.data[0], frame.data[1:]
            if channel not in begun:
                begun.add(channel)
            elif channel == 0:
                near.sendall(data)
            else:
                return False
    return True
