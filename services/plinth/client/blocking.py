"""The client whose calls block."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import grpc

from plinth.client import transfers
from plinth.client.address import address_of, key_of
from plinth.client.calls import Services
from plinth.client.channels import GatewayAddress, open_blocking
from plinth.client.methods import Method, serialized
from plinth.client.policy import (
    Attempts,
    Gateway,
    Policy,
    closed,
    gone_quiet,
    seconds_of,
)
from plinth.shared.errors import PlinthError
from plinth.v1 import artifacts_pb2 as pb


class Client(Services):
    """A gateway, with a key. May be used by many threads; close it, or use it as a context."""

    def __init__(
        self,
        address: GatewayAddress | str | None = None,
        key: str | None = None,
        *,
        policy: Policy | None = None,
    ) -> None:
        """address: "host:port", or "grpcs://host:port" for TLS; None: PLINTH_URL, or this machine.
        key: an API key; None: PLINTH_API_KEY, or the content of the file PLINTH_API_KEY_FILE.
        InvalidArgument for what is no address or no key."""
        self.address = address_of(address)
        self._transport = Transport(self.address, key_of(key), policy or Policy())
        super().__init__(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def upload(self, folder: Path | str, artifact_id: str, *, license: str = "") -> pb.Artifact:
        """The next version of an artifact, of kind "files", from all files in a folder; a job makes
        a model of it. Called again after it was stopped, it goes on; after it ended, it gives the
        artifact that it made.

        InvalidArgument for a folder without files, or with links; OSError for what can't be read;
        else as ArtifactService's CreateUpload, WriteUpload and FinishUpload."""
        files = transfers.files_of(Path(folder))
        return transfers.upload(self, files, artifact_id, license=license)

    def download(self, name: str, folder: Path | str) -> pb.Artifact:
        """All files of an artifact into a folder, which may hold some of them already. Called again
        after it was stopped, it goes on.

        name: "artifacts/chat@7"; also "artifacts/chat:prod" or "artifacts/chat". DataLoss for a
        file that came with another digest, OSError for what can't be written."""
        return transfers.download(self, name, Path(folder))


class Transport:
    """Calls by their methods, repeated and resumed as the policy has it."""

    def __init__(self, address: GatewayAddress, key: str, policy: Policy) -> None:
        self._gateway = Gateway(address, key, policy)
        self._channel = open_blocking(address)
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()
        self._channel.close()

    def unary(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> Any:
        """The response. Raises the PlinthError that the platform raised."""
        call = self._channel.unary_unary(method.path, serialized, method.parse)
        attempts = Attempts(self._gateway, method, request, timeout)
        while True:
            try:
                response = call(
                    attempts.request,
                    timeout=attempts.left_s,
                    metadata=self._gateway.metadata(metadata),
                )
                attempts.answered()
                return response
            except (grpc.RpcError, ValueError) as raised:
                self._wait(attempts, raised)

    def stream(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> Generator[Any, None, None]:
        """The responses; closing the iterator cancels the call."""
        open_call = self._channel.unary_stream(method.path, serialized, method.parse)
        attempts = Attempts(self._gateway, method, request, timeout)
        while True:
            call = None
            try:
                call = open_call(
                    attempts.request,
                    timeout=attempts.left_s,
                    metadata=self._gateway.metadata(metadata),
                )
                with _Watchdog(
                    call, self._gateway.policy.quiet_s if method.resumable else None
                ) as messages:
                    call.initial_metadata()  # comes when somebody has taken the request
                    if call.is_active():
                        attempts.answered()
                    for message in messages:
                        if attempts.took(message):
                            yield message
                    return
            except (grpc.RpcError, ValueError, TimeoutError) as raised:
                self._wait(attempts, raised)
            finally:
                if call is not None:
                    call.cancel()

    def upload(
        self,
        method: Method,
        requests: Iterable[Any],
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> Any:
        """The response to a stream of requests; it is sent once."""
        call = self._channel.stream_unary(method.path, serialized, method.parse)
        try:
            return call(
                iter(requests),
                timeout=seconds_of(timeout),
                metadata=self._gateway.metadata(metadata),
            )
        except (grpc.RpcError, ValueError) as raised:
            raise self._told(raised) from raised

    def _told(self, raised: grpc.RpcError | ValueError | TimeoutError) -> PlinthError:
        """What a call ended with. gRPC's ValueError is that of a channel that was closed."""
        if self._closed.is_set():
            return closed()
        if isinstance(raised, ValueError):
            raise raised
        if isinstance(raised, TimeoutError):
            return gone_quiet(self._gateway.address)
        return self._gateway.told(raised)

    def _wait(self, attempts: Attempts, raised: grpc.RpcError | ValueError | TimeoutError) -> None:
        """Until the next attempt; raises what the call ended with where there is none."""
        error = self._told(raised)
        if (wait_s := attempts.next_wait_s(error)) is None:
            raise error from raised
        if self._closed.wait(wait_s):
            raise closed() from raised


class _Watchdog:
    """Cancels a call on which its reader has waited too long for a message, as a context that
    gives the messages and then raises TimeoutError."""

    def __init__(self, call: Any, quiet_s: float | None) -> None:
        self._call, self._quiet_s = call, quiet_s
        self._waits_since: float | None = time.monotonic()
        self._over = threading.Event()
        self._late = False

    def __enter__(self) -> Iterator[Any]:
        if self._quiet_s is None:
            messages: Iterator[Any] = iter(self._call)
            return messages
        threading.Thread(target=self._watch, args=(self._quiet_s,), daemon=True).start()
        return self._read()

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        self._over.set()
        if self._late and isinstance(error, grpc.RpcError):
            raise TimeoutError from error

    def _read(self) -> Iterator[Any]:
        for message in self._call:
            self._waits_since = None  # the reader is busy with it
            yield message
            self._waits_since = time.monotonic()

    def _watch(self, quiet_s: float) -> None:
        left: float = quiet_s
        while not self._over.wait(left):
            since = self._waits_since
            left = quiet_s if since is None else since + quiet_s - time.monotonic()
            if left <= 0:
                self._late = True
                self._call.cancel()
                return
