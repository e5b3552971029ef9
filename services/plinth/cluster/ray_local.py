"""A Ray of our own on this machine: small, on loopback only, with its token, gone when stopped.

`ray.init()` and `ray start` replace a loopback address by the machine's own and start servers that
a stack has no use for (dashboard, autoscaler, log monitor). So the head node is put together here
from the same parts, with the address kept. Everything in this file that is not Ray's public API
is tied to Ray 2.60, which pyproject.toml pins.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plinth.cluster.layout import Layout, settings_environment
from plinth.shared.errors import FailedPrecondition
from plinth.shared.private_folders import make_private
from plinth.shared.secrets_file import VARIABLE as SECRETS_FILE
from plinth.shared.secrets_file import write_secrets
from plinth.shared.settings import OTHER_VARIABLES, Settings
from plinth.shared.settings_values import is_secret, leaves, spelled, variable

HOST = "127.0.0.1"
NAMESPACE = "plinth"
OBJECT_STORE_BYTES = 100 << 20  # gradients and datasets of a laptop's runs; Ray's least is 75 MB
# Logical: replicas and training workers must always find a place; the operating system shares
# the real ones.
LOGICAL_CPUS = 64
# A person's key and address are no business of the stages.
_NOT_HANDED = frozenset({"PLINTH_API_KEY", "PLINTH_URL", SECRETS_FILE})


def environment(layout: Layout, base: Mapping[str, str]) -> dict[str, str]:
    """Variables for the head process. Ray's C++ parts read theirs when a process starts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    variables = {k: v for k, v in base.items() if k not in {"RAY_ADDRESS", "RAY_JOB_CONFIG_JSON"}}
    # Ray would set one thread for actors that ask for less than one logical CPU.
    variables.setdefault("OMP_NUM_THREADS", str(cores or 1))
    variables.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(layout.ray_token),
        RAY_USAGE_STATS_ENABLED="0",
        # Its name is historical: with 0, Ray takes loopback as the node's address everywhere.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        # Workers start when something wants one and end soon after.
        RAY_enable_worker_prestart="0",
        RAY_prestart_worker_first_driver="0",
        RAY_num_workers_soft_limit="0",
        RAY_idle_worker_killing_time_threshold_ms="1000",
        # The controller looks around four times a second instead of ten.
        RAY_SERVE_CONTROL_LOOP_INTERVAL_S="0.25",
        # Nothing collects these here.
        RAY_enable_metrics_collection="0",
        RAY_event_stats="0",
        RAY_task_events_report_interval_ms="0",
        # All processes of a laptop may see its GPUs, whatever their share of the logical ones.
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_DEDUP_LOGS="0",
        RAY_TMPDIR=str(layout.ray_dir / "r"),
    )
    return variables


def ensure_token(layout: Layout) -> None:
    """Makes Ray's token once, for the owner's eyes only."""
    path = layout.ray_token
    if path.exists() and path.stat().st_size:
        return
    make_private(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def make_ray_dir(layout: Layout) -> Path:
    """Ray's folder, fresh; FailedPrecondition when somebody else's file stands there."""
    path = layout.ray_dir
    if path.is_symlink() or (path.exists() and path.stat().st_uid != os.getuid()):
        raise FailedPrecondition(f"{path} is not ours: remove it, or set TMPDIR to another folder")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    return path / "r"  # Ray opens its folder to everybody; ours around it stays closed


class LocalRay:
    """GCS, raylet and its two agents on loopback, and this process as their driver."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._node: Any = None

    @property
    def address(self) -> str:
        return str(self._node.gcs_address)

    def start(self) -> str:
        """Starts all and connects; returns the GCS address. Takes some 3 s."""
        import ray  # noqa: PLC0415  (100 MB that only the head process needs)
        from ray._private import node, parameter, utils  # noqa: PLC0415

        temp_dir = make_ray_dir(self._layout)
        # The agent's full form serves a dashboard; told that its parts are missing, it is minimal
        # and listens nowhere.
        utils.get_dashboard_dependency_error = lambda: ImportError("the dashboard is not wanted")

        class Head(node.Node):  # type: ignore[misc]
            def start_api_server(self, **_: object) -> None:
                """The dashboard: not wanted."""

        self._node = Head(
            parameter.RayParams(
                node_ip_address=HOST,
                num_cpus=LOGICAL_CPUS,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                include_log_monitor=False,
                no_monitor=True,
                dashboard_agent_listen_port=0,
                temp_dir=str(temp_dir),
                resources={},
            ),
            head=True,
            shutdown_at_exit=False,
            spawn_reaper=True,  # GCS and raylet die with this process
        )
        ray.init(
            address=self.address,
            _node_ip_address=HOST,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )
        return self.address

    def dead(self) -> list[str]:
        """Names of Ray's own processes that have ended."""
        return sorted(
            str(kind)
            for kind, infos in self._node.all_processes.items()
            if any(info.process.poll() is not None for info in infos)
        )

    def stop(self) -> None:
        """Ends all of it; the folder goes too."""
        import ray  # noqa: PLC0415

        if ray.is_initialized():
            ray.shutdown()
        if self._node is not None:
            self._node.kill_all_processes(check_alive=False, allow_graceful=True)
        shutil.rmtree(self._layout.ray_dir, ignore_errors=True)


def connect(settings: Settings) -> str:
    """Joins the Ray of `settings.ray_address`, which runs already, as a driver.

    What is started there loads the same settings. Ray shows the variables of a job to whoever sees
    its dashboard or its logs, so secrets go by a file in the data directory: its name is shown.
    """
    import ray  # noqa: PLC0415

    address = settings.ray_address
    assert address is not None
    ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        runtime_env={
            "env_vars": {**shown_environment(settings), "PYTHONPATH": os.pathsep.join(sys.path)}
        },
    )
    return address


def shown_environment(settings: Settings) -> dict[str, str]:
    """Variables with which other processes load these settings, without any secret in them. Writes
    the secrets' file."""
    given = settings_environment(settings)
    secret = {
        key: spelled(value)
        for key, value in leaves(settings)
        if is_secret(value) and variable(key) in given
    }
    handed = settings.ensure_secrets_dir() / "handed.json"
    write_secrets(handed, secret)
    others = {k: v for k in sorted(OTHER_VARIABLES - _NOT_HANDED) if (v := os.environ.get(k))}
    shown = {k: v for k, v in given.items() if k not in map(variable, secret)}
    return {**others, **shown, SECRETS_FILE: str(handed)}
