"""The sections of the settings: what each stage, and what all of them, can be told.

Each is a frozen model whose unknown keys are refused; `settings.py` reads them from where an
operator writes them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

MIB = 1 << 20
_KEY = re.compile(r"[!-~]{32,512}")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ServerTlsSettings(Section):
    """TLS of what clients connect to: PEM files, both or none; `certificate` with its chain. A
    renewed file is taken up by itself."""

    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> ServerTlsSettings:
        if (self.certificate is None) != (self.key is None):
            missing = "certificate" if self.certificate is None else "key"
            raise ValueError(f"{missing}: missing; set certificate and key for TLS, or none")
        return self

    @property
    def on(self) -> bool:
        """Whether clients speak TLS."""
        return self.certificate is not None


class GatewaySettings(Section):
    """The gateway. Ports of 0 take any free one."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    grpc_port: int = Field(default=8081, ge=0, le=65535)
    # "off" lets everybody in as admin, so it is refused unless `host` is loopback.
    auth: Literal["keys", "off"] = "keys"
    # The platform's first key (admin), of an operator who keeps it elsewhere, such as in a Secret.
    # None: on a platform without any key, the first gateway makes one in its data directory.
    first_key: SecretStr | None = None
    # For how long a key is trusted after Redis last confirmed it. While Redis can't be reached for
    # longer, every request is refused as unavailable, since a key that was revoked meanwhile would
    # be taken else: longer bears longer outages of Redis, shorter ends a revoked key sooner in one.
    keys_stale_s: float = Field(default=60.0, ge=15, le=3600)
    # Of a body, packed or unpacked; a gRPC message may have 64 KiB more. As text it may take four
    # times as much memory.
    max_body_bytes: int = Field(default=2 * MIB, ge=1024)
    # A field without effect, known or not: "ignore" says so by x-plinth-ignored, "refuse" is a 400.
    unknown_fields: Literal["ignore", "refuse"] = "ignore"
    tls: ServerTlsSettings = ServerTlsSettings()  # of both ports
    # Proxies (addresses or networks) whose X-Forwarded-For and -Proto are believed.
    trusted_proxies: tuple[str, ...] = ()
    # Web origins ("https://app.example.com") whose pages may call the REST API; "*" is all. Unset:
    # all where clients need keys, which a browser never sends by itself; none with auth off, where
    # any page that somebody looks at would be admin: what such a one sends is refused.
    cors_origins: tuple[str, ...] | None = None
    # With auth off, names in a Host header that are answered beside loopback's own: that of a proxy
    # on this machine. A page may let any other point here (DNS rebinding).
    allowed_hosts: tuple[str, ...] = ()
    # Of one REST request: its headers, together and each line; and how long its client may take.
    max_header_bytes: int = Field(default=32 * 1024, ge=4096)
    max_headers: int = Field(default=100, ge=16)
    head_timeout_s: float = Field(default=10.0, gt=0)  # also of a TLS or HTTP/2 handshake
    body_timeout_s: float = Field(default=60.0, gt=0)
    # Connections that REST clients may hold, and gRPC clients: each. A full REST port closes the
    # one that has waited longest for its client's next request; a full gRPC port the new one.
    max_connections: int = Field(default=4096, ge=16)
    # An idle connection stays open for longer than clients' pools and balancers keep theirs.
    keep_alive_s: float = Field(default=75.0, ge=1)
    request_deadline_s: float = Field(default=600.0, gt=0)  # of one answer, up to its last token
    # How long a request that has no token yet waits for a living shard; and an answer that has
    # begun, for another one: longer than Ray takes to restart whole.
    patience_s: float = Field(default=30.0, ge=0)
    resume_patience_s: float = Field(default=150.0, ge=0)
    drain_s: float = Field(default=30.0, ge=0)  # what running answers get when the gateway stops
    # How long a part of an answer waits for its client to read it, by REST or gRPC; then the client
    # is cut off. Shards make nothing for it meanwhile.
    slow_client_s: float = Field(default=30.0, ge=0.1)
    # Per tenant; 0 is no limit.
    tenant_concurrent_requests: int = Field(default=0, ge=0)
    tenant_tokens_per_minute: int = Field(default=0, ge=0)
    # Processor time for a client's pattern on all answers of its request (`select` with a vote).
    pattern_s: float = Field(default=0.5, gt=0, le=10)
    # Share of the chats with consent (x-plinth-consent: preferences) that become preference tasks.
    preference_sampling_rate: float = Field(default=0.0, ge=0, le=1)
    # The served model that gives the second answer; empty: the same model, with another seed.
    preference_rival: str = Field(default="", max_length=256)

    @field_validator("first_key")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        plain = value.get_secret_value()
        if not _KEY.fullmatch(plain):
            raise ValueError("a first key has 32 to 512 printable ASCII characters, without blanks")
        return value


class EngineSettings(Section):
    """One shard's engine."""

    device: str = "cpu"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    block_size: int = Field(default=16, ge=1, le=1024)  # tokens per KV block
    kv_cache_bytes: int = Field(default=256 * MIB, ge=1)
    max_batch_tokens: int = Field(default=512, ge=1)  # tokens per step
    max_running: int = Field(default=64, ge=1)
    max_waiting: int = Field(default=256, ge=0)  # before a request of the same priority
    # Steps of waiting that count as one level of priority, so that the lowest waits for a bounded
    # time; 0: a higher priority always goes first.
    priority_aging: int = Field(default=0, ge=0)
    prefix_cache: bool = True
    speculation: str = "lookup"  # "off", "lookup" or "draft:<artifact>"
    # Sample for policy runs with what room is left; their keys and values, and for how long the
    # weights of one that nobody asks for are kept.
    rollouts: bool = True
    policy_kv_cache_bytes: int = Field(default=512 * MIB, ge=1)
    policy_idle_s: float = Field(default=60.0, gt=0)


class RpcSettings(Section):
    """Every gRPC server and channel."""

    max_message_bytes: int = Field(default=16 * MIB, ge=64 * 1024)
    # What a unary call gets whose client set no deadline.
    default_deadline_s: float = Field(default=60.0, gt=0)
    # Connections are renewed so that clients see new replicas; calls in flight stay on the old one.
    max_connection_age_s: float = Field(default=1800.0, gt=0)
    # How often a quiet connection is pinged, and how long the answer may take: so late at the most
    # is it noticed that the network lost it.
    keepalive_s: float = Field(default=30.0, ge=1)
    keepalive_timeout_s: float = Field(default=10.0, gt=0)
    max_concurrent_streams: int = Field(default=1024, ge=1)  # per connection
    # How long a stage lets a message of a stream wait for its caller to read it.
    slow_reader_s: float = Field(default=60.0, ge=0.1)


class TelemetrySettings(Section):
    """Traces by OpenTelemetry, for who has a collector. Logs and metrics need no setting."""

    # Of a collector that takes OTLP over HTTP: http://collector:4318. Empty: no traces.
    otlp_endpoint: str = Field(default="", max_length=1024)
    # Share of the traces that are kept.
    trace_ratio: float = Field(default=1.0, ge=0, le=1)

    @field_validator("otlp_endpoint")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(
                f"{value!r} is no address of a collector; like http://collector:4318, which is "
                "OTLP over HTTP (not 4317, which is gRPC)"
            )
        if parts.query or parts.fragment or parts.password or parts.username:
            raise ValueError(
                "an address alone, without credentials or query: a collector's token goes in "
                "OTEL_EXPORTER_OTLP_HEADERS"
            )
        return value


class TlsSettings(Section):
    """Mutual TLS between the stages: PEM files, all three or none. Each certificate is good for a
    server and for a client, and names `plinth-<stage>`. A renewed file is taken up by itself."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> TlsSettings:
        given = {name for name in ("certificate", "key", "ca") if getattr(self, name)}
        if given and len(given) < 3:
            missing = ", ".join(f"tls.{n}" for n in ("certificate", "key", "ca") if n not in given)
            raise ValueError(f"{missing}: missing; set all three for TLS, or none")
        return self

    @property
    def on(self) -> bool:
        """Whether stages speak TLS."""
        return self.certificate is not None


class TokenizerSettings(Section):
    """The tokenizer stage."""

    max_text_bytes: int = Field(default=8 * MIB, ge=1)  # per request, all texts together


class TrainerSettings(Section):
    """The trainer stage."""

    device: str = "cpu"
    # CPU workers run under SCHED_IDLE, so that people who chat keep their latency.
    background: bool = True
    # Per CPU worker; 0 shares the machine's cores out evenly.
    threads: int = Field(default=0, ge=0)
    # What Ray sets aside for one worker; small, since they take only what is left over.
    worker_cpus: float = Field(default=0.1, ge=0)
    # A custom resource of Ray that each worker takes one of, so that workers run on the nodes that
    # offer it and nowhere else; empty: anywhere.
    worker_resource: str = Field(default="", max_length=128)
    lease_s: float = Field(default=15.0, gt=0)  # of a job


class RewardSettings(Section):
    """The reward stage."""

    device: str = "cpu"
    batch_tokens: int = Field(default=2048, ge=1)  # of a learned model, per launch
    models_kept: int = Field(default=2, ge=1)  # learned models that stay open
    code_processes: int = Field(default=1, ge=1)  # answers whose code is tested at the same time
    regex_s: float = Field(default=0.5, gt=0, le=10)  # processor time: one pattern on one answer
    tasks: int = Field(default=4, ge=1, le=64)  # of the queue, at the same time
    lease_s: float = Field(default=15.0, gt=0)  # of a task


class CoordinatorSettings(Section):
    """The coordinator stage."""

    lease_s: float = Field(default=10.0, gt=0)  # of the leader


class ScalingSettings(Section):
    """Where a stage may have more replicas (`max_replicas`, `max_shards`): what one of them should
    bear. The largest of its figures counts; above its target there are to be more."""

    kv_usage: float = Field(default=0.8, gt=0, le=1)  # share of a shard's KV blocks
    waiting: float = Field(default=4.0, gt=0)  # requests that wait for room in a shard's batch
    first_token_s: float = Field(default=2.0, gt=0)  # the median, from a request's arrival
    rewards_oldest_s: float = Field(default=10.0, gt=0)  # the reward task that waits longest
    jobs_oldest_s: float = Field(default=60.0, gt=0)  # the training job that waits longest
    over_s: float = Field(default=30.0, ge=12)  # what figures are averaged over
    # For how long fewer must have been enough: a replica that goes takes its cache along.
    down_after_s: float = Field(default=300.0, ge=0)
