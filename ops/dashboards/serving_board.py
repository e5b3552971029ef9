"""Dashboard "Serving": what clients get, and what the shards do for it."""

from __future__ import annotations

from grafana import Board, Choice, Panel, Query

_RATE = "$__rate_interval"
_ASKED = 'path!~"/healthz|/readyz|/metrics"'
_FAULT = 'code=~"5..|(STREAM_)?(INTERNAL|UNKNOWN|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED)"'


def _quantile(share: float, metric: str, by: str = "model") -> str:
    where = '{model=~"$model"}' if by == "model" else ""
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{where}[{_RATE}])))"


def _quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(
        Query(_quantile(share, metric), f"p{round(100 * share)} {{{{model}}}}")
        for share in (0.5, 0.95, 0.99)
    )


CLIENTS = (
    Panel(
        "Gateway ready",
        "bool_yes_no",
        "No: no client can ask a model. GET /readyz says why.",
        (Query("max(plinth_gateway_ready)"),),
        kind="stat",
        width=4,
        red_below=1,
    ),
    Panel(
        "Shards ready of those wanted",
        "percentunit",
        "Below 100 % for more than a restart: a shard does not come back. 0: nobody serves.",
        (
            Query(
                'max by (model) (plinth_model_shards_ready{model=~"$model"})'
                ' / max by (model) (plinth_model_shards_wanted{model=~"$model"})',
                "{{model}}",
            ),
        ),
        kind="stat",
        width=8,
        red_below=1,
    ),
    Panel(
        "Requests by API and path",
        "reqps",
        "The shape of the day. A step down without one in errors: clients can't reach the gateway.",
        (
            Query(
                f"sum by (api, path) (rate(plinth_requests_total{{{_ASKED}}}[{_RATE}]))",
                "{{api}} {{path}}",
            ),
        ),
        width=12,
        stack=True,
    ),
    Panel(
        "Faults of ours",
        "percentunit",
        "The objective is 0.5 % over a month. Above 7 % a page comes within minutes.",
        (
            Query(
                f"(sum(rate(plinth_requests_total{{{_ASKED}, {_FAULT}}}[{_RATE}])) or vector(0))"
                f" / sum(rate(plinth_requests_total{{{_ASKED}}}[{_RATE}]))",
                "share",
            ),
        ),
        red_above=0.005,
    ),
    Panel(
        "Answers other than success, by code",
        "reqps",
        "5xx and INTERNAL are ours; STREAM_… is an answer that broke after its first byte, at "
        "status 200; 429 says that a quota or a queue is full; 499 that clients hung up, often "
        "because they waited too long.",
        (
            Query(
                f'sum by (code) (rate(plinth_requests_total{{{_ASKED}, code!~"2..|OK"}}[{_RATE}]))',
                "{{code}}",
            ),
        ),
        stack=True,
    ),
    Panel(
        "Requests being answered",
        "short",
        "Grows without end: answers take longer than they come. Flat at a quota: see 429.",
        (Query("sum(plinth_gateway_requests_running)", "running"),),
    ),
    Panel(
        "API keys that can't be read",
        "short",
        "Not 0: these keys are refused (500), all others work. `plinth keys list` names them.",
        (Query("max(plinth_gateway_unreadable_keys)", "unreadable"),),
    ),
    Panel(
        "Connections of REST clients",
        "short",
        "Refused: gateway.max_connections is reached. Evicted ones only waited for their client; "
        "full says that all were answering.",
        (
            Query("sum by (instance) (plinth_gateway_connections)", "open {{instance}}"),
            Query(
                f"sum by (reason) (rate(plinth_gateway_connections_refused_total[{_RATE}]))",
                "refused per second: {{reason}}",
            ),
        ),
    ),
)

LATENCY = (
    Panel(
        "Time to first token",
        "s",
        "The objective is 95 % within 2.5 s. p95 up and p50 not: queueing; both up: long prompts "
        "or a slow machine.",
        _quantiles("plinth_request_ttft_seconds"),
        red_above=2.5,
    ),
    Panel(
        "Between the pieces of an answer",
        "s",
        "What a reader feels. Grows with the batch; jumps where training takes the processor.",
        _quantiles("plinth_request_itl_seconds"),
    ),
    Panel(
        "At the shard: arrival to first token",
        "s",
        "Beside the first panel: the difference is the gateway and the tokenizer.",
        (
            Query(
                f"histogram_quantile(0.95, sum by (le) "
                f"(rate(plinth_engine_first_token_seconds_bucket[{_RATE}])))",
                "p95",
            ),
        ),
    ),
)

SHARDS = (
    Panel(
        "Running and waiting",
        "short",
        "Waiting above 0 for long: more shards, or fewer requests per tenant.",
        (
            Query("sum by (instance) (plinth_requests_running)", "running {{instance}}"),
            Query("sum by (instance) (plinth_requests_waiting)", "waiting {{instance}}"),
        ),
    ),
    Panel(
        "KV cache in use",
        "percentunit",
        "Near 100 % with requests waiting: sequences are preempted and computed again.",
        (
            Query(
                "plinth_kv_cache_usage_ratio * on (instance) group_left (model)"
                " max by (instance, model) (plinth_shard_info)",
                "{{model}} {{instance}}",
            ),
        ),
        red_above=0.95,
    ),
    Panel(
        "Engine steps",
        "ops",
        "0 with work: the engine stands still (ShardStalled).",
        (Query(f"rate(plinth_engine_steps_total[{_RATE}])", "{{instance}}"),),
    ),
    Panel(
        "Tokens made",
        "tokps",
        "The shard's speed under this load; compare shards of one kind.",
        (Query(f"rate(plinth_generated_tokens_total[{_RATE}])", "{{instance}}"),),
    ),
    Panel(
        "Prompt tokens, and those from the prefix cache",
        "tokps",
        "A cache that stops hitting makes first tokens slow: did system prompts change?",
        (
            Query(
                f'sum(rate(plinth_tokens_total{{kind="prompt", model=~"$model"}}[{_RATE}]))',
                "prompt",
            ),
            Query(f"sum(rate(plinth_prefix_cache_hit_tokens_total[{_RATE}]))", "from the cache"),
        ),
    ),
    Panel(
        "Drafts accepted",
        "percentunit",
        "Speculation pays above a third or so; far below, turn it off for this model.",
        (
            Query(
                f"sum(rate(plinth_spec_accepted_tokens_total[{_RATE}]))"
                f" / sum(rate(plinth_spec_proposed_tokens_total[{_RATE}]))",
                "accepted",
            ),
        ),
    ),
    Panel(
        "Answers that went on at another shard",
        "ops",
        "Outside of upgrades and drains this is 0; each one is a shard that died under a client. "
        "Given up: two shards died under one request, and it goes to no third.",
        (
            Query(
                f'sum by (model) (rate(plinth_streams_resumed_total{{model=~"$model"}}[{_RATE}]))',
                "{{model}}",
            ),
            Query(f"sum(rate(plinth_poison_requests_total[{_RATE}]))", "given up"),
        ),
    ),
    Panel(
        "Requests with fields that had no effect",
        "ops",
        "Their answers name the fields in x-plinth-ignored. Unknown: nobody knows the field, so "
        "it may be a slip of the client's; `gateway.unknown_fields: refuse` makes it an error.",
        (
            Query(
                f"sum by (field) (rate(plinth_ignored_fields_total[{_RATE}]))",
                "{{field}}",
            ),
        ),
    ),
    Panel(
        "Clients that don't read",
        "ops",
        "Paused: a shard stopped an answer whose client was behind, and goes on when it reads. Cut "
        "off: the client took nothing for gateway.slow_client_s (by gRPC: or another caller of a "
        "stage, for rpc.slow_reader_s).",
        (
            Query(
                f'sum by (model) (rate(plinth_streams_paused_total{{model=~"$model"}}[{_RATE}]))',
                "paused {{model}}",
            ),
            Query(f"sum(rate(plinth_slow_clients_total[{_RATE}]))", "cut off, REST"),
            Query(
                f"sum by (method) (rate(plinth_rpc_slow_readers_total[{_RATE}]))",
                "cut off, {{method}}",
            ),
        ),
    ),
)

REVISIONS = (
    Panel(
        "Requests by revision",
        "reqps",
        "A canary gets its share and no more.",
        (
            Query(
                "sum by (model, revision, outcome) "
                f'(rate(plinth_revision_requests_total{{model=~"$model"}}[{_RATE}]))',
                "{{revision}} {{outcome}}",
            ),
        ),
        stack=True,
    ),
    Panel(
        "First token by revision, p95",
        "s",
        "A canary that is slower than the revision beside it should not be promoted.",
        (Query(_quantile(0.95, "plinth_revision_ttft_seconds", "revision"), "{{revision}}"),),
    ),
    Panel(
        "Tokens by revision",
        "tokps",
        "Whose answers clients read.",
        (
            Query(
                "sum by (revision) "
                f'(rate(plinth_revision_tokens_total{{model=~"$model"}}[{_RATE}]))',
                "{{revision}}",
            ),
        ),
    ),
    Panel(
        "Tokens by tenant",
        "tokps",
        "Who uses the platform; beyond fifty tenants the rest are one line.",
        (
            Query(
                f'sum by (tenant) (rate(plinth_tokens_total{{model=~"$model"}}[{_RATE}]))',
                "{{tenant}}",
            ),
        ),
        stack=True,
    ),
)

BOARD = Board(
    "plinth-serving",
    "Plinth: serving",
    "What clients get, and what the shards do for it.",
    (
        ("Clients", CLIENTS),
        ("Latency", LATENCY),
        ("Shards", SHARDS),
        ("Revisions and tenants", REVISIONS),
    ),
    (Choice("model", "plinth_model_shards_wanted", "model"),),
)
