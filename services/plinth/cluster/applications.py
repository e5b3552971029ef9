"""The stages on a Ray cluster that somebody else runs, by Serve's declarative configuration.

`stage` is the import path of every application in such a configuration; its arguments are a
StageSpec. KubeRay applies the configuration of a RayService by itself. Where there is no operator,
`python -m plinth.cluster.applications FILE` does the same to the Ray head beside it, again after
a head that came back without its memory. What it applied stays when it ends: a restart of this
process is no restart of the stages.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from plinth.cluster.layout import StageSpec
from plinth.cluster.replicas import application
from plinth.shared.errors import InvalidArgument, PlinthError, described
from plinth.shared.settings import load_settings
from plinth.shared.telemetry import configure_logging, get_logger

IMPORT_PATH = "plinth.cluster.applications:stage"
DASHBOARD = "http://127.0.0.1:8265"
LOOK_S = 5.0
_KEYS = frozenset({"proxy_location", "applications"})
_log = get_logger("plinth.cluster.applications")


def stage(arguments: Mapping[str, Any]) -> Any:
    """Serve's application builder. InvalidArgument when `arguments` are no StageSpec."""
    return application(spec_of(arguments))


def spec_of(arguments: Mapping[str, Any]) -> StageSpec:
    """A StageSpec from a mapping of its fields; InvalidArgument names what is wrong."""
    try:
        return StageSpec(**arguments)
    except TypeError as error:
        known = ", ".join(StageSpec.__dataclass_fields__)
        raise InvalidArgument(f"a stage is described by {known}: {error}") from error


def read_configuration(path: Path) -> dict[str, Any]:
    """A Serve configuration of Plinth's applications, checked; InvalidArgument if it is none."""
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InvalidArgument(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise InvalidArgument(f"{path} must hold {' and '.join(sorted(_KEYS))}, and nothing else")
    if found["proxy_location"] != "Disabled":
        raise InvalidArgument(f"{path}: proxy_location must be Disabled; no request passes Serve")
    for one in found["applications"]:
        if one["import_path"] != IMPORT_PATH:
            raise InvalidArgument(f"{path}: {one['name']} must be imported from {IMPORT_PATH}")
        if (spec := spec_of(one["args"])).name != one["name"]:
            raise InvalidArgument(f"{path}: the application {one['name']} runs stage {spec.name}")
        for part in one.get("deployments", []):
            fits = isinstance(part, dict) and set(part) == {"name", "autoscaling_config"}
            if not fits or part["name"] != spec.name:
                raise InvalidArgument(
                    f"{path}: deployments of {spec.name} may hold one entry, with its name and its "
                    "autoscaling_config"
                )
    return found


class Serve(Protocol):
    """What is needed of `ray.dashboard.modules.serve.sdk.ServeSubmissionClient`."""

    def get_serve_details(self) -> dict[Any, Any]: ...

    def deploy_applications(self, config: dict[Any, Any]) -> None: ...


class Keeper:
    """Applies one configuration, and again when an application of it is gone.

    `connect` opens Serve's client, which asks the dashboard for its version and raises while the
    head starts: so it is called by the first look that succeeds.
    """

    def __init__(self, connect: Callable[[], Serve], configuration: dict[str, Any]) -> None:
        self._connect = connect
        self._serve: Serve | None = None
        self._configuration = configuration
        self._names = {one["name"] for one in configuration["applications"]}
        self._applied = False

    def look(self) -> bool:
        """One look; whether it applied anything. Raises what the dashboard's client raises."""
        if self._serve is None:
            self._serve = self._connect()
        there = set(self._serve.get_serve_details().get("applications") or {})
        if self._applied and self._names <= there:
            return False
        self._serve.deploy_applications(self._configuration)
        if self._applied:
            _log.warning("applications were gone and are back", gone=sorted(self._names - there))
        else:
            _log.info("applications are applied", applications=sorted(self._names))
        self._applied = True
        return True


def main(arguments: list[str]) -> int:
    """Until told to stop. 2: the file is wrong."""
    settings = load_settings()
    configure_logging(settings, "applications")
    try:
        configuration = read_configuration(Path(arguments[0]))
    except PlinthError as error:
        _log.error("the configuration is refused", error=error.message)
        return 2
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient  # noqa: PLC0415

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    address = os.environ.get("RAY_DASHBOARD_ADDRESS", DASHBOARD)
    keeper = Keeper(lambda: ServeSubmissionClient(address), configuration)
    said = ""
    while not stop.is_set():
        try:
            keeper.look()
            said = ""
        except Exception as error:  # noqa: BLE001  (whatever it raises while the head starts)
            if said != (now := described(error)):
                _log.warning("the Ray head does not answer yet", error=now)
            said = now
        stop.wait(LOOK_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
