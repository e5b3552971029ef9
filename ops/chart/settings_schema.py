"""Plinth's own settings as a schema, for `config` in the chart's values: without what the chart
sets itself, so that setting it is refused with its path."""

from __future__ import annotations

from typing import Any

from plinth.shared.settings import Settings

Schema = dict[str, Any]

# Settings that the chart sets, or that a cluster has no use for.
OWNED = frozenset(
    {
        *("data_dir", "redis_url", "release", "store_url", "ray_address", "cluster_token", "tls"),
        *("log_format", "log_to", "host", "advertise_host"),
        *("stage_port", "metrics_port", "health_port"),
        *("gateway.host", "gateway.port", "gateway.grpc_port", "gateway.auth", "gateway.drain_s"),
        "gateway.first_key",
        # The kubelet's gRPC probes can't speak TLS: such a gateway would be killed again and again.
        # In a cluster the ingress ends TLS (gateway.ingress.tlsSecret).
        "gateway.tls",
        "trainer.worker_resource",
    }
)
# Of JSON Schema, what pydantic writes and draft 7 knows.
KEPT = frozenset(
    {
        *("type", "enum", "const", "pattern", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)


def settings_schema() -> Schema:
    """`Settings` without what the chart owns; pydantic's references resolved."""
    whole = Settings.model_json_schema()
    definitions = whole.get("$defs", {})

    def plain(node: Schema, path: str) -> Schema:
        if "$ref" in node:
            node = {**definitions[node["$ref"].rpartition("/")[2]]}
        kept = {key: value for key, value in node.items() if key in KEPT}
        if "anyOf" in node:
            kept["anyOf"] = [plain(one, path) for one in node["anyOf"]]
        if "properties" in node:
            prefix = f"{path}." if path else ""
            kept["properties"] = {
                name: plain(value, prefix + name)
                for name, value in node["properties"].items()
                if prefix + name not in OWNED
            }
            kept["additionalProperties"] = False
        return kept

    return plain(whole, "")
