"""Dashboard "Queues and cluster": what all stages share, and the processes themselves."""

from __future__ import annotations

from grafana import Board, Choice, Panel, Query

_RATE = "$__rate_interval"

QUEUES = (
    Panel(
        "The oldest that waits",
        "s",
        "How late a queue is. Minutes: more comes than is done; trainer-jobs waits by nature.",
        (
            Query(
                'max by (queue) (plinth_queue_oldest_waiting_seconds{queue=~"$queue"})',
                "{{queue}}",
            ),
        ),
    ),
    Panel(
        "Waiting and held",
        "short",
        "Waiting with nothing held: its consumers are gone (QueueWithoutConsumer).",
        (
            Query(
                "max by (queue, state) "
                '(plinth_queue_items{queue=~"$queue", state=~"waiting|leased"})',
                "{{queue}} {{state}}",
            ),
        ),
    ),
    Panel(
        "Retries and dead letters",
        "short",
        "A dead letter waits for somebody: `plinth queue dead QUEUE` has the reasons.",
        (
            Query(
                "max by (queue, state) "
                '(plinth_queue_items{queue=~"$queue", state=~"delayed|dead"})',
                "{{queue}} {{state}}",
            ),
        ),
    ),
)

RUNS = (
    Panel(
        "Coordinators that lead",
        "short",
        "One. None: runs stand still.",
        (Query("sum(plinth_coordinator_leads)"),),
        kind="stat",
        width=4,
        red_below=1,
    ),
    Panel(
        "Runs that have not ended",
        "short",
        "As the leader sees them.",
        (Query("sum(plinth_runs_active)"),),
        kind="stat",
        width=4,
    ),
    Panel(
        "Runs that ended",
        "ops",
        "A failed one has its reason in `plinth runs watch RUN`; a gate that refuses is no fault.",
        (Query(f"sum by (state) (rate(plinth_runs_ended_total[{_RATE}]))", "{{state}}"),),
        stack=True,
    ),
    Panel(
        "Since the reconciler's last pass",
        "s",
        "Seconds. Minutes: store or Serve are away, and new models wait.",
        (Query("time() - max(plinth_reconciler_passed_timestamp_seconds)", "since"),),
        red_above=120,
    ),
)

REDIS = (
    Panel(
        "Redis takes our word",
        "percentunit",
        "Below 100 %: some process of that stage can't reach it.",
        (Query("avg by (stage) (plinth_redis_reachable)", "{{stage}}"),),
        red_below=1,
    ),
    Panel(
        "Redis's memory",
        "bytes",
        "At its limit Redis refuses writes, since it throws nothing away.",
        (
            Query("max(plinth_redis_memory_used_bytes)", "used"),
            Query("max(plinth_redis_memory_limit_bytes)", "limit"),
        ),
    ),
    Panel(
        "Redis writes its file",
        "bool_yes_no",
        "No: what is accepted now is lost with its process.",
        (Query("min(plinth_redis_durable)"),),
        kind="stat",
        width=4,
        red_below=1,
    ),
)

GROUND = (
    Panel(
        "Free on the store's disk",
        "percentunit",
        "Of a store on files; an object store has no such line.",
        (Query("min by (store) (plinth_store_free_bytes / plinth_store_size_bytes)", "{{store}}"),),
        red_below=0.1,
    ),
    Panel(
        "Certificates: time left",
        "s",
        "Renewed after two thirds of their life; a line that never jumps up is not renewed.",
        (
            Query(
                "min by (certificate) (plinth_tls_certificate_expiry_timestamp_seconds) - time()",
                "{{certificate}}",
            ),
        ),
        red_below=604800,
    ),
    Panel(
        "Processes by version",
        "short",
        "Two versions: an upgrade is under way, or stands still.",
        (Query("count by (version) (plinth_build_info)", "{{version}}"),),
        stack=True,
    ),
    Panel(
        "Stages that are well",
        "percentunit",
        "Below 100 % for longer than a restart: see the stage's log.",
        (Query("avg by (stage) (plinth_stage_healthy)", "{{stage}}"),),
        red_below=1,
    ),
)

SCALING = (
    Panel(
        "Load against its target",
        "percentunit",
        "The mean of a stage's replicas; above 100 % there are to be more, where there may be "
        "(config.scaling has the targets).",
        (Query("avg by (stage) (plinth_stage_load_ratio)", "{{stage}}"),),
        width=12,
    ),
    Panel(
        "Replicas wanted",
        "short",
        "As Ray Serve wants them now. More than there are pods: they wait for room.",
        (Query("max by (stage) (plinth_stage_replicas_wanted)", "{{stage}}"),),
        width=12,
    ),
)

CALLS = (
    Panel(
        "gRPC calls by method",
        "reqps",
        "Who talks how much between the stages.",
        (
            Query(
                "sum by (method) "
                f'(rate(plinth_rpc_requests_total{{method!~"grpc.health.*"}}[{_RATE}]))',
                "{{method}}",
            ),
        ),
        width=12,
    ),
    Panel(
        "gRPC calls that ended badly",
        "reqps",
        "UNAVAILABLE in a moment of an upgrade is usual, and tried again; INTERNAL is a bug.",
        (
            Query(
                "sum by (method, code) "
                f'(rate(plinth_rpc_requests_total{{code!~"OK|CANCELLED"}}[{_RATE}]))',
                "{{method}} {{code}}",
            ),
        ),
        width=12,
    ),
    Panel(
        "gRPC calls, p95",
        "s",
        "By method, to the last message; streams last as long as their answers.",
        (
            Query(
                "histogram_quantile(0.95, sum by (le, method) (rate("
                f'plinth_rpc_duration_seconds_bucket{{method!~"grpc.health.*"}}[{_RATE}])))',
                "{{method}}",
            ),
        ),
        width=12,
    ),
    Panel(
        "gRPC calls being served",
        "short",
        "Grows without end: something is stuck behind that method.",
        (Query("sum by (method) (plinth_rpc_in_flight)", "{{method}}"),),
        width=12,
    ),
    Panel(
        "Watches that went on elsewhere",
        "short",
        "Attempts to go on with a stream that broke, by the stage that told it. Some at each "
        "restart; a line that stays up means that nobody can go on, or that a network drops them.",
        (
            Query(
                f"sum by (stage) (increase(plinth_rpc_streams_resumed_total[{_RATE}]))",
                "{{stage}}",
            ),
        ),
    ),
)

PROCESSES = (
    Panel(
        "Processor time",
        "short",
        "Cores in use by each process that is scraped; training workers are not among them.",
        (Query(f'rate(process_cpu_seconds_total{{job=~"plinth.*"}}[{_RATE}])', "{{instance}}"),),
    ),
    Panel(
        "Memory",
        "bytes",
        "Resident. A line that only rises is a leak; a shard's is flat once its cache is there.",
        (Query('process_resident_memory_bytes{job=~"plinth.*"}', "{{instance}}"),),
    ),
    Panel(
        "Scraped",
        "bool_yes_no",
        "No: the process is gone, or the network keeps Prometheus out.",
        (Query('up{job=~"plinth.*"}', "{{instance}}"),),
        red_below=1,
    ),
)

BOARD = Board(
    "plinth-cluster",
    "Plinth: queues and cluster",
    "What all stages share, and the processes themselves.",
    (
        ("Queues", QUEUES),
        ("Runs and reconciler", RUNS),
        ("Scaling", SCALING),
        ("Redis", REDIS),
        ("Disk, certificates, health", GROUND),
        ("Calls between stages", CALLS),
        ("Processes", PROCESSES),
    ),
    (Choice("queue", "plinth_queue_items", "queue"),),
)
