"""What the gateway counts. Tenants beyond the first fifty share one label."""

from __future__ import annotations

from plinth.shared.telemetry import counter, gauge, histogram

MAX_TENANTS = 50
_tenants: set[str] = set()

REQUESTS = counter(
    "requests_total", "Requests by API, path and code.", ["api", "path", "code", "tenant"]
)
IGNORED_FIELDS = counter(
    "ignored_fields_total",
    "Requests with a field that had no effect, by its name where Plinth knows it; else unknown.",
    ["field"],
)
READY = gauge("gateway_ready", "1 while a model can be asked, 0 while not: what /readyz says.")
UNREADABLE_KEYS = gauge(
    "gateway_unreadable_keys", "API keys that are refused since their record can't be read."
)
CONNECTIONS = gauge("gateway_connections", "Connections of REST clients.")
CONNECTIONS_REFUSED = counter(
    "gateway_connections_refused_total",
    "REST connections that were one too many, by what became of it: evicted (one that waited for "
    "its client was closed) or full (the new one was).",
    ["reason"],
)
RUNNING = gauge("gateway_requests_running", "Requests being answered.")
TOKENS = counter("tokens_total", "Tokens of answered requests.", ["kind", "model", "tenant"])
RESUMED = counter("streams_resumed_total", "Streams that went on at another shard.", ["model"])
PAUSED = counter(
    "streams_paused_total",
    "Times that a shard stopped an answer whose reader was behind, to go on later.",
    ["model"],
)
SLOW_CLIENTS = counter(
    "slow_clients_total", "REST answers cut off since their client did not read them."
)
POISON = counter("poison_requests_total", "Requests given up after two shards died under them.")
PREFERENCES = counter(
    "live_preferences_total",
    "Answers with consent that were drawn for a preference task, by what became of them.",
    ["outcome"],
)
TTFT = histogram(
    "request_ttft_seconds",
    "From a request's arrival to its first token.",
    ["model"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
ITL = histogram(
    "request_itl_seconds",
    "Between the pieces of one answer.",
    ["model"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 5, 30),
)
REVISION_REQUESTS = counter(
    "revision_requests_total",
    "Requests by the revision that answered, and their outcome: ok, error, cancelled.",
    ["model", "revision", "outcome"],
)
REVISION_TOKENS = counter(
    "revision_tokens_total", "Tokens made by each revision.", ["model", "revision"]
)
REVISION_TTFT = histogram(
    "revision_ttft_seconds",
    "From a request's arrival to its first token, by the revision that answered.",
    ["model", "revision"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


def tenant_label(tenant: str) -> str:
    """`tenant` itself for the first fifty that come, "other" for the rest."""
    if tenant in _tenants:
        return tenant
    if len(_tenants) >= MAX_TENANTS:
        return "other"
    _tenants.add(tenant)
    return tenant
