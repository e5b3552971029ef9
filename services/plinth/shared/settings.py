"""What an operator can set: environment (`PLINTH_…`, "__" nests), one YAML file, overrides.

Order, strongest first: overrides given in code or on the command line, environment, the YAML file
(PLINTH_CONFIG, or plinth.yaml in the data directory if there), defaults. An unknown key anywhere
is an error that names the nearest right one. Settings are frozen and know where each value came
from. A section's fields are read by the stage that the section is named after, if there is one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.private_folders import make_private
from plinth.shared.secrets_file import VARIABLE as SECRETS_FILE
from plinth.shared.secrets_file import handed_secrets
from plinth.shared.settings_sections import (
    CoordinatorSettings,
    EngineSettings,
    GatewaySettings,
    RewardSettings,
    RpcSettings,
    ScalingSettings,
    TelemetrySettings,
    TlsSettings,
    TokenizerSettings,
    TrainerSettings,
)
from plinth.shared.settings_values import PREFIX, leaves, masked
from plinth.shared.sources import flatten, is_loopback, reject_unknown, reject_unknown_variables

# Variables that are no settings but are read elsewhere: the files' places here, the key and the
# address by the CLI's clients, the mark on a stack's processes by `plinth down`,
# the choice of kernels by `plinth/kernels`.
OTHER_VARIABLES = frozenset(
    {SECRETS_FILE, "PLINTH_CONFIG", "PLINTH_API_KEY", "PLINTH_URL", "PLINTH_STACK"}
    | {"PLINTH_KERNELS"}
)


class Settings(BaseSettings):
    """All settings of a Plinth process. Made by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,  # a mistyped secret must not be printed
    )

    data_dir: Path = Path(".plinth")
    redis_url: SecretStr | None = None
    # Whose the Redis database is: no process starts on one that another release marked. The chart's
    # <namespace>/<name>; None: it is not marked.
    release: str | None = Field(default=None, min_length=1, max_length=512)
    store_url: str | None = None
    ray_address: str | None = None
    cluster_token: SecretStr | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "pretty"] = "auto"
    host: str = "127.0.0.1"  # what stages bind
    advertise_host: str | None = None  # what they announce; None: `host`
    stage_port: int = Field(default=0, ge=0, le=65535)  # a stage's gRPC; 0: any free port
    metrics_port: int = Field(default=0, ge=0, le=65535)  # 0: any free port, which is announced
    # A stage's health once more, without TLS and with nothing else, for a supervisor's probes
    # (Kubernetes' can't present a certificate); 0: none.
    health_port: int = Field(default=0, ge=0, le=65535)
    # Where replicas write what they have to say: logs/ in the data directory, or standard error
    # for a cluster that collects it.
    log_to: Literal["file", "stderr"] = "file"
    # Folders of a stage's own machine that a request may name something in (`source_roots.py`); in
    # a variable with ":" between them. None: the home and the working directory of who starts a
    # stack with a Ray of its own (`plinth up` on a laptop), no folder anywhere else.
    source_roots: Annotated[tuple[Path, ...] | None, NoDecode] = None
    gateway: GatewaySettings = GatewaySettings()
    engine: EngineSettings = EngineSettings()
    rpc: RpcSettings = RpcSettings()
    tls: TlsSettings = TlsSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    trainer: TrainerSettings = TrainerSettings()
    reward: RewardSettings = RewardSettings()
    coordinator: CoordinatorSettings = CoordinatorSettings()
    scaling: ScalingSettings = ScalingSettings()

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load_settings merges the sources itself, since it must know which one gave what.
        return (init_settings,)

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("source_roots", mode="before")
    @classmethod
    def _folders(cls, value: object) -> object:
        parts = value.split(os.pathsep) if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            return value
        roots = [Path(str(part)).expanduser() for part in parts if str(part).strip()]
        if wrong := [str(root) for root in roots if not root.is_absolute()]:
            raise ValueError(f"{wrong[0]!r} is no absolute path of a folder")
        return tuple(roots)

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("cluster_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not (16 <= len(value.get_secret_value()) <= 512):
            raise ValueError("a cluster token has 16 to 512 characters")
        return value

    @model_validator(mode="after")
    def _auth_off_only_on_loopback(self) -> Settings:
        if self.gateway.auth == "off" and not is_loopback(self.gateway.host):
            raise ValueError(
                f"gateway.auth is 'off' while gateway.host is {self.gateway.host!r}: without keys "
                "the gateway binds loopback only; set gateway.auth=keys or gateway.host=127.0.0.1"
            )
        return self

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each value came from, by dotted key; keys that aren't here are defaults."""
        return self._sources

    def store(self) -> str:
        """URL of the artifact store: file://, s3:// or gs://."""
        return self.store_url or f"file://{self.data_dir / 'store'}"

    @property
    def secrets_dir(self) -> Path:
        """Folder of secrets; see `ensure_secrets_dir`."""
        return self.data_dir / "secrets"

    @property
    def first_key_file(self) -> Path:
        """Where the gateway puts the platform's first API key, and the CLI looks for it."""
        return self.secrets_dir / "api-key"

    def ensure_data_dir(self) -> Path:
        """Makes the data directory, for its owner only, unless it is there."""
        return make_private(self.data_dir)

    def ensure_secrets_dir(self) -> Path:
        """Makes it, for its owner only. FailedPrecondition when others can look into it."""
        make_private(self.secrets_dir)
        mode = self.secrets_dir.stat().st_mode & 0o777
        if mode & 0o077:
            raise FailedPrecondition(
                f"{self.secrets_dir} is open to others (mode {mode:o}); chmod 700 it"
            )
        return self.secrets_dir


def load_settings(**overrides: Any) -> Settings:
    """Settings of this process; `overrides` win: `load_settings(gateway={"port": 0})`, or
    `gateway__port=0`. Raises InvalidArgument naming the key and its source."""
    given = _nest(overrides)
    reject_unknown(given, Settings, source="override")
    reject_unknown_variables(os.environ, Settings, prefix=PREFIX, others=OTHER_VARIABLES)
    environment = _environment()
    path = _config_path(given, environment)
    file = _read_yaml(path) if path is not None else {}
    handed = _nest({k.replace(".", "__"): v for k, v in handed_secrets(environment).items()})
    reject_unknown(handed, Settings, source=SECRETS_FILE)
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for values, source in (
        (file, f"file {path}"),
        (environment, "environment"),
        (handed, f"file {os.environ.get(SECRETS_FILE)}"),
        (given, "override"),
    ):
        _merge(merged, values)
        sources.update({key: source for key, _ in flatten(values)})
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise _explain(error, sources) from None
    settings._sources.update(sources)
    return settings


def effective(settings: Settings) -> list[tuple[str, str, str]]:
    """[(dotted key, value with secrets masked, source)] in the order of declaration."""
    return [
        (key, masked(value), settings.sources.get(key, "default"))
        for key, value in leaves(settings)
    ]


def _nest(overrides: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        *sections, leaf = key.split("__")
        into = nested
        for section in sections:
            into = into.setdefault(section, {})
        if isinstance(value, BaseModel):
            into[leaf] = value.model_dump()
        elif isinstance(value, Mapping):
            into.setdefault(leaf, {}).update(value)
        else:
            into[leaf] = value
    return nested


def _environment() -> dict[str, Any]:
    values: dict[str, Any] = dict(EnvSettingsSource(Settings)())
    # Ray's own variable, so that a cluster that is set up for Ray needs nothing more.
    if "ray_address" not in values and os.environ.get("RAY_ADDRESS"):
        values["ray_address"] = os.environ["RAY_ADDRESS"]
    return values


def _config_path(given: Mapping[str, Any], environment: Mapping[str, Any]) -> Path | None:
    named = os.environ.get("PLINTH_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise InvalidArgument(f"PLINTH_CONFIG names {path}, which is no file")
        return path
    default = Settings.model_fields["data_dir"].default
    data_dir = Path(given.get("data_dir") or environment.get("data_dir") or default)
    path = data_dir.expanduser() / "plinth.yaml"
    return path if path.is_file() else None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} is no YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidArgument(
            f"{path} must hold a mapping of settings, not {type(values).__name__}"
        )
    reject_unknown(values, Settings, source=str(path))
    if "data_dir" in values and not os.environ.get("PLINTH_CONFIG"):
        raise InvalidArgument(
            f"{path} lies in the data directory and so can't set data_dir; use --data, "
            "PLINTH_DATA_DIR, or a file named by PLINTH_CONFIG",
            field="data_dir",
        )
    return values


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: ValidationError, sources: Mapping[str, str]) -> InvalidArgument:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"])
        source = f" (from {sources[key]})" if key in sources else ""
        lines.append(f"{key or 'settings'}: {item['msg'].removeprefix('Value error, ')}{source}")
    first = ".".join(str(part) for part in error.errors()[0]["loc"])
    return InvalidArgument("; ".join(lines), reason="SETTINGS_INVALID", field=first)
