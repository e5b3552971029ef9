"""The Kubernetes API as operations use it: `CALLS` in, plain JSON out, and every refusal an error
that says what to do.

Kubeconfig, credentials, TLS and proxies are the `kubernetes` client's; its generated models are
not used, since they refuse what a newer server adds. A call ends within `timeout_s`; throttling
(429, and 503 with a time) is waited out as long as `patience_s` allows.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import urllib3.exceptions

from plinth.cluster.kubernetes_ops.calls import CALLS
from plinth.cluster.kubernetes_ops.failures import failure
from plinth.cluster.kubernetes_ops.kubeconfig import configured
from plinth.shared.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

T = TypeVar("T")
Json = dict[str, Any]

TIMEOUT_S = 15.0
PATIENCE_S = 60.0
CONFLICTS = 6  # reads and writes before a conflict is the caller's
_PAUSE_S = 0.1


class Api:
    """One cluster, one namespace. Safe to share between threads."""

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        *,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.timeout_s = timeout_s
        self._patience_s = patience_s
        self.stopped = threading.Event()
        self._pause = pause or self.stopped.wait
        self._streaming: set[Any] = set()

    @classmethod
    def open(
        cls,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        namespace: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Api:
        """As `configured` finds it; errors as there."""
        found, of_context = configured(kubeconfig, context)
        from kubernetes.client import ApiClient  # noqa: PLC0415

        api = ApiClient(found)
        return cls(api, namespace or of_context or "default", timeout_s=timeout_s)

    @property
    def host(self) -> str:
        return str(self.client.configuration.host)

    def close(self) -> None:
        """Ends waits, streams that are being read, and connections."""
        self.stopped.set()
        for response in list(self._streaming):
            connection = getattr(response, "connection", None)
            if (sock := getattr(connection, "sock", None)) is not None:
                with contextlib.suppress(OSError):  # a reader that waits in it wakes up
                    sock.shutdown(socket.SHUT_RDWR)
        self.client.close()

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- calls ----------------------------------------------------------------------------------

    def call(
        self,
        name: str,
        /,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        patient: bool = True,
        **path: str,
    ) -> Json:
        """What the server answers to one of `CALLS`. Raises the PlinthError that fits; with
        `patient` false, throttling is raised at once."""
        end = time.monotonic() + (self._patience_s if patient else 0.0)
        while True:
            try:
                response = self._send(name, query, body, self.timeout_s, path)
                answer: Json = json.loads(self._guarded(response.read))
                return answer
            except (ResourceExhausted, Unavailable) as error:
                wait = error.retry_after_s
                if wait is None or time.monotonic() + wait > end:
                    raise
                self._pause(wait)

    def items(self, name: str, selector: str = "", **query: str) -> list[Json]:
        """The objects of a list call; `selector`: by label."""
        return list(self.listing(name, selector, **query)["items"])

    def listing(self, name: str, selector: str = "", **query: str) -> Json:
        """A list with its metadata, read in one piece."""
        return self.call(name, query=({"labelSelector": selector} if selector else {}) | query)

    def lines(
        self, name: str, query: Mapping[str, str], /, *, quiet_s: float, **path: str
    ) -> Iterator[str]:
        """Lines of a streaming answer, until it ends. DeadlineExceeded after `quiet_s` seconds
        without a byte. Close it."""
        from kubernetes.watch.watch import iter_resp_lines  # noqa: PLC0415

        response = self._send(name, query, None, (self.timeout_s, quiet_s), path).response
        self._streaming.add(response)
        try:
            lines = iter_resp_lines(response)
            while (line := self._guarded(lambda: next(lines, None))) is not None:
                yield line
        finally:
            self._streaming.discard(response)
            response.close()
            response.release_conn()

    def prepared(self, name: str, query: Any, path: Mapping[str, str]) -> tuple[str, Json]:
        """(URL, headers with the credentials) of a call, for a websocket."""
        call = CALLS[name]
        _, url, headers, _, _ = self.client.param_serialize(
            call.method,
            call.path,
            path_params={"namespace": self.namespace, **path},
            query_params=list(query.items()) if isinstance(query, Mapping) else list(query),
            header_params={"Accept": "application/json", "Content-Type": call.content},
            auth_settings=["BearerToken"],
        )
        return url, headers

    def fresh(self, change: Callable[[], T]) -> T:
        """`change`, which reads and then writes what it read, again while others write meanwhile.
        Aborted when they do so each time."""
        for attempt in range(CONFLICTS):
            try:
                return change()
            except Aborted:
                if attempt == CONFLICTS - 1:
                    raise
                self._pause(_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def _send(self, name: str, query: Any, body: Any, timeout: Any, path: Mapping[str, str]) -> Any:
        call = CALLS[name]
        url, headers = self.prepared(name, query or {}, path)
        response = self._guarded(
            lambda: self.client.rest_client.request(
                call.method, url, headers=headers, body=body, _request_timeout=timeout
            )
        )
        if 200 <= response.status <= 299:
            return response
        text = self._guarded(response.read).decode("utf-8", "replace")
        raise failure(call, response.status, text, response.headers, self.namespace, self.host)

    def _guarded(self, work: Callable[[], T]) -> T:
        """What the connection does wrong, as errors that name the server."""
        from kubernetes.client import ApiException  # noqa: PLC0415

        try:
            return work()
        except urllib3.exceptions.NewConnectionError as error:  # a time-out by its class only
            raise self._unreachable(error) from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineExceeded(
                f"the API server {self.host} did not answer within {self.timeout_s:g} s; "
                "--timeout gives it longer",
                reason="KUBERNETES_TIMEOUT",
            ) from error
        except ApiException as error:  # of TLS: the client has no other way to tell
            raise FailedPrecondition(
                f"no TLS with {self.host}: {error.reason}", reason="KUBERNETES_TLS"
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the API server {self.host} can't be reached: {error}",
            reason="KUBERNETES_UNAVAILABLE",
        )
