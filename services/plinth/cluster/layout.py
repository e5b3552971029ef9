"""Where a stack keeps its things: folders, ports, process ids, and what it is made of.

One data directory is one stack. `stack.json` (0600: it holds the URL of Redis) tells the other
commands where the running one is; only the supervisor writes it. Ray's sockets need a short path,
so its folder lies in the system's temporary directory under the stack's id and goes with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plinth.shared.errors import DataLoss
from plinth.shared.settings import Settings
from plinth.shared.settings_values import spelled, variable

MARKER = "PLINTH_STACK"  # in the environment of every process of a stack
STATE_SCHEMA = 1
# Ray appends some 75 characters for its sockets; a unix socket path has at most 107 bytes.
_RAY_DIR_LIMIT = 30
# Of a StageSpec: how many replicas there are to be. No replica needs to know.
NUMBERS = frozenset({"replicas", "max_replicas", "load_over_s", "down_after_s"})


@dataclass(frozen=True)
class StageSpec:
    """One kind of replica. `factory` is "module:function", called with (context, **options)."""

    name: str
    factory: str
    stage: str = ""  # as announced in the registry; empty: the name
    options: Mapping[str, Any] = field(default_factory=dict)
    replicas: int = 1
    # Serve runs up to so many while load asks for it (`plinth.cluster.scaling`); 0, or no more than
    # `replicas`: always `replicas`.
    max_replicas: int = 0
    # Over how long a replica's load is averaged, and for how long fewer must have been enough.
    load_over_s: float = 30.0
    down_after_s: float = 300.0
    cpus: float = 0.1  # of Ray's logical CPUs: placement, no limit
    gpus: float = 0.0
    # Custom resources of Ray: where a replica may run. The laptop's one node needs none.
    resources: Mapping[str, float] = field(default_factory=dict)
    # How many successors, in percent of the replicas, may start before their predecessors stop.
    # 0 where nodes have room for one replica and there is no node to spare.
    surge_percent: int = 100
    # What running answers get when one replica is replaced; whoever is left goes on at another
    # replica of the same weights. A change of weights leaves none, so there this is the limit.
    drain_s: float = 25.0

    def digest(self) -> str:
        """Changes when running replicas must be replaced (not when only their number does)."""
        parts = {k: v for k, v in asdict(self).items() if k not in NUMBERS}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def numbers(self) -> tuple[float, ...]:
        """What Serve can change without a new replica: least, most, and the policy's times."""
        most = max(self.replicas, self.max_replicas)
        return self.replicas, most, self.load_over_s, self.down_after_s


@dataclass(frozen=True)
class StackPlan:
    """What a stack runs. The default is Plinth's own stages; tests bring smaller ones."""

    stages: tuple[StageSpec, ...] = (
        StageSpec("tokenizer", "plinth.tokenizer.service:build"),
        StageSpec("trainer", "plinth.trainer.service:build"),
        StageSpec("reward", "plinth.reward.service:build"),
        StageSpec("coordinator", "plinth.coordinator.service:build"),
    )
    # Template of a served model's shards; the reconciler fills in name, options and resources.
    shard: StageSpec = StageSpec("inference", "plinth.inference.service:build", "inference")
    gateway: str = "plinth.gateway"  # module run as the gateway's process; "" for none

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> StackPlan:
        raw = json.loads(text)
        return cls(
            stages=tuple(StageSpec(**stage) for stage in raw["stages"]),
            shard=StageSpec(**raw["shard"]),
            gateway=raw["gateway"],
        )


@dataclass(frozen=True)
class Layout:
    """Paths of the stack on one data directory."""

    data_dir: Path

    @classmethod
    def of(cls, settings: Settings) -> Layout:
        return cls(settings.data_dir)

    @property
    def stack_id(self) -> str:
        """The same for the same directory, so that leftovers are found without stack.json."""
        return hashlib.sha256(os.fsencode(self.data_dir.resolve())).hexdigest()[:10]

    @property
    def state_file(self) -> Path:
        return self.data_dir / "stack.json"

    @property
    def lock_file(self) -> Path:
        return self.data_dir / "stack.lock"

    @property
    def logs(self) -> Path:
        return self.data_dir / "logs"

    @property
    def stopping(self) -> Path:
        """There while the stack goes down: replicas then drain for a second, not half a minute."""
        return self.data_dir / "stopping"

    @property
    def ray_token(self) -> Path:
        return self.data_dir / "secrets" / "ray-token"

    @property
    def ray_dir(self) -> Path:
        base = Path(tempfile.gettempdir())
        name = f"plinth-{self.stack_id}"
        return (base if len(str(base)) + len(name) < _RAY_DIR_LIMIT else Path("/tmp")) / name  # noqa: S108

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"


@dataclass
class ComponentState:
    """One line of `plinth status`: state is starting, ready, restarting, failed or stopped."""

    state: str = "starting"
    pid: int = 0
    created: float = 0.0  # the process's creation time, Unix seconds: pids come again
    address: str = ""
    detail: str = ""
    since: float = field(default_factory=time.time)
    restarts: int = 0


@dataclass
class StackState:
    """What the supervisor writes down. `phase`: starting, ready, stopping or failed."""

    stack_id: str
    phase: str = "starting"
    pid: int = 0
    created: float = 0.0
    started: float = field(default_factory=time.time)
    ready_s: float = 0.0  # how long the start took
    redis_url: str = ""
    gateway_host: str = ""
    gateway_port: int = 0
    gateway_grpc_port: int = 0
    ray_dir: str = ""
    sessions: list[int] = field(default_factory=list)  # session ids of its process groups
    components: dict[str, ComponentState] = field(default_factory=dict)
    error: str = ""

    def rest_url(self, *, tls: bool) -> str:
        """Of the gateway's REST API, without a path."""
        host = f"[{self.gateway_host}]" if ":" in self.gateway_host else self.gateway_host
        return f"{'https' if tls else 'http'}://{host}:{self.gateway_port}"

    def write(self, path: Path) -> None:
        """Atomic, for its owner only."""
        raw = {"schema": STATE_SCHEMA, **asdict(self)}
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(raw, file, indent=1)
        staged.replace(path)

    @classmethod
    def read(cls, path: Path) -> StackState | None:
        """None when no stack wrote here; DataLoss when the file can't be understood."""
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataLoss(f"{path} is no JSON; run `plinth down` to clear the stack") from error
        if raw.pop("schema", None) != STATE_SCHEMA:
            raise DataLoss(f"{path} was written by another version of Plinth; `plinth down` first")
        parts = raw.pop("components")
        return cls(components={k: ComponentState(**v) for k, v in parts.items()}, **raw)


def settings_environment(settings: Settings) -> dict[str, str]:
    """Variables with which another process loads the same settings.

    Values from a YAML file are left to the file; what came from elsewhere is spelled out.
    """
    variables = {"PLINTH_DATA_DIR": str(settings.data_dir)}
    for key, source in settings.sources.items():
        if source.startswith("file "):
            continue
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        if value is None:
            continue
        variables[variable(key)] = spelled(value)
    return variables
