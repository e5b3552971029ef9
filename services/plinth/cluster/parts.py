"""The parts that a supervisor keeps alive: Redis, the Ray head, the gateway.

Each part is polled: `poll()` looks once, restarts what died and never blocks for long. Back-off
grows with failures in a row, so that a part that can't start doesn't spin.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.cluster.layout import ComponentState
from plinth.cluster.processes import Identity
from plinth.shared.errors import PlinthError
from plinth.shared.private_folders import make_private

BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0)
HEALTHY_AFTER_S = 30.0  # a part that lived this long has no failures in a row any more
PROBE_PERIOD_S = 5.0
PROBE_MISSES = 4  # then a process that lives but does not answer is restarted

Report = Callable[[str, ComponentState], None]


class Backoff:
    """When the next start may be tried."""

    def __init__(self) -> None:
        self.failures = 0
        self._started = 0.0
        self._not_before = 0.0

    def started(self) -> None:
        self._started = time.monotonic()

    def failed(self) -> None:
        now = time.monotonic()
        if now - self._started > HEALTHY_AFTER_S:
            self.failures = 0
        self._not_before = now + BACKOFF_S[min(self.failures, len(BACKOFF_S) - 1)]
        self.failures += 1

    def due(self) -> bool:
        return time.monotonic() >= self._not_before


class RedisPart:
    """The embedded Redis: a dead or dumb one is started again over the same append-only file."""

    def __init__(self, data_dir: Path, report: Report) -> None:
        self.server = EmbeddedRedis(data_dir)
        self._report = report
        self._backoff = Backoff()
        self._identity: Identity | None = None
        self._probed = 0.0
        self._misses = 0
        self._restarts = 0

    def start(self) -> str:
        """Starts it, or raises what stands in the way. Returns the URL."""
        self._backoff.started()
        url = self.server.start()
        assert self.server.pid is not None
        self._identity = Identity.of(self.server.pid)
        address = "unix socket" if url.startswith("unix") else url.rpartition("@")[2]
        self._tell("ready", address=address)
        return url

    def poll(self) -> None:
        if self._identity is not None and self._identity.alive() and self._answers():
            return
        if self._identity is not None:
            self._identity = None
            self._backoff.failed()
            self._restarts += 1
            self._tell("restarting", detail="it died; starting it over its append-only file")
        if self._backoff.due():
            try:
                self.start()
            except PlinthError as error:
                self._backoff.failed()
                self._tell("failed", detail=error.message)

    def stop(self) -> None:
        self.server.stop()

    def _answers(self) -> bool:
        now = time.monotonic()
        if now - self._probed < PROBE_PERIOD_S:
            return True
        self._probed = now
        self._misses = 0 if self.server.alive() else self._misses + 1
        return self._misses < PROBE_MISSES

    def _tell(self, state: str, *, address: str = "", detail: str = "") -> None:
        who = self._identity or Identity(0, 0.0)
        self._report(
            "redis",
            ComponentState(state, who.pid, who.created, address, detail, restarts=self._restarts),
        )


class ChildPart:
    """A process in a session of its own, with its output in a log file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        report: Report,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._report = report
        self._backoff = Backoff()
        self._process: subprocess.Popen[bytes] | None = None
        self._identity = Identity(0, 0.0)
        self._restarts = 0
        self.started_at = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        self._backoff.started()
        self.started_at = time.monotonic()
        make_private(self._log.parent)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output(log),
                stderr=log,
                start_new_session=True,
            )
        self._identity = Identity.of_child(self._process)
        self._started()

    def poll(self) -> bool:
        """Whether the process runs; starts it again when it is due."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return True
            self._process = None
            self._restarts += 1
            self._backoff.failed()
            self._ended()
            self.tell("restarting", detail=f"ended with code {code}; see {self._log}")
        if self._backoff.due():
            self.start()
        return False

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def stop(self, timeout_s: float) -> None:
        """TERM, then KILL after `timeout_s`."""
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def tell(self, state: str, *, address: str = "", detail: str = "") -> None:
        who = self._identity
        self._report(
            self.name,
            ComponentState(state, who.pid, who.created, address, detail, restarts=self._restarts),
        )

    def _output(self, log: IO[bytes]) -> IO[bytes] | int:
        return log

    def _started(self) -> None:
        self.tell("starting" if not self._restarts else "restarting")

    def _ended(self) -> None:
        """For subclasses: the process is gone and will be started again."""


class HeadPart(ChildPart):
    """The Ray head; what it tells about Ray and the stages is passed on."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        report: Report,
        clear: Callable[[int], None],
    ) -> None:
        super().__init__("ray", command, environment, log, report)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._clear = clear
        self.components: set[str] = set()

    def read(self) -> None:
        """Passes on what the head told since the last call."""
        while not self._lines.empty():
            told = json.loads(self._lines.get())
            name = str(told.pop("component"))
            if name == "ray":
                self.tell(told["state"], address=told["address"], detail=told["detail"])
                continue
            self.components.add(name)
            self._report(name, ComponentState(**told))

    def _output(self, log: IO[bytes]) -> IO[bytes] | int:
        return subprocess.PIPE

    def _started(self) -> None:
        super()._started()
        assert self._process is not None
        assert self._process.stdout is not None
        threading.Thread(target=self._pump, args=(self._process.stdout,), daemon=True).start()

    def _pump(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                if line.startswith(b"{"):
                    self._lines.put(line)

    def _ended(self) -> None:
        # Ray is restarted whole: what is left of the old one would serve beside the new.
        self._clear(self._identity.pid)
        self.read()
        for name in self.components:
            self._report(name, ComponentState("restarting", detail="Ray is being restarted"))


class GatewayPart(ChildPart):
    """The gateway; ready when /healthz answers, restarted when it stops answering."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        report: Report,
        address: tuple[str, int],
        *,
        tls: bool = False,
    ) -> None:
        super().__init__("gateway", command, environment, log, report)
        self._address = address
        self._tls = tls
        self._probed = 0.0
        self._ready = False
        self._misses = 0

    def poll(self) -> bool:
        if not super().poll():
            self._ready = False
            return False
        now = time.monotonic()
        if now - self._probed < (PROBE_PERIOD_S if self._ready else 0.5):
            return True
        self._probed = now
        if self._answers():
            self._misses = 0
            if not self._ready:
                self._ready = True
                scheme = "https" if self._tls else "http"
                self.tell("ready", address=f"{scheme}://{self._address[0]}:{self._address[1]}")
        elif self._ready:
            self._misses += 1
            if self._misses >= PROBE_MISSES:
                self._misses = 0
                self.tell("restarting", detail="it lives but does not answer")
                self.signal(signal.SIGKILL)
        return True

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(*self._address, timeout=2.0)
        if self._tls:  # our own child: whether it lives is asked, not who it is
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(*self._address, timeout=2.0, context=context)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
