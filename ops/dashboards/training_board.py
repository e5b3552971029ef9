"""Dashboard "Training and alignment": jobs, what they learn, rollouts, rewards, preferences."""

from __future__ import annotations

from grafana import Board, Choice, Panel, Query

_RATE = "$__rate_interval"


def _figure(name: str) -> str:
    return f'plinth_trainer_figure{{model=~"$model", figure="{name}"}}'


def _figures(*names: str) -> tuple[Query, ...]:
    return tuple(Query(_figure(name), f"{name} {{{{model}}}}") for name in names)


JOBS = (
    Panel(
        "Progress",
        "percentunit",
        "A line that is flat is a job that waits (TrainingStalled). It goes when the job ends.",
        (Query('plinth_trainer_progress_ratio{model=~"$model"}', "{{model}}"),),
    ),
    Panel(
        "Jobs in work",
        "short",
        "One per trainer replica at most. 0 while jobs wait: QueueWithoutConsumer.",
        (
            Query("sum(plinth_trainer_jobs_running)", "in work"),
            Query('max(plinth_queue_items{queue="trainer-jobs", state="waiting"})', "waiting"),
        ),
    ),
    Panel(
        "Attempts that ended",
        "ops",
        "Retried and lost ones cost the time since their last checkpoint; failed is the end.",
        (Query(f"sum by (end) (rate(plinth_trainer_attempts_total[{_RATE}]))", "{{end}}"),),
        stack=True,
    ),
    Panel(
        "Tokens learned from",
        "tokps",
        "The job's speed. It falls where chats take the processor, by design.",
        _figures("tokens_per_second"),
    ),
)

DATA = (
    Panel(
        "Data that steps took",
        "short",
        "Files, documents, chats, pairs and prompts, of steps that ended; reused ones took none.",
        (
            Query(
                f"sum by (step_kind) (increase(plinth_data_items_taken_total[{_RATE}]))",
                "{{step_kind}}",
            ),
        ),
        stack=True,
    ),
    Panel(
        "Data that steps left out",
        "short",
        "By why; the run's screen has it in words. Much too_long: raise sequence_length.",
        (
            Query(
                f"sum by (step_kind, reason) (increase(plinth_data_items_left_out_total[{_RATE}]))",
                "{{step_kind}} {{reason}}",
            ),
        ),
        stack=True,
    ),
)

LEARNING = (
    Panel(
        "Loss",
        "short",
        "Falls and flattens. A jump: look at the gradient's norm at that moment.",
        _figures("loss"),
    ),
    Panel(
        "Gradient's norm",
        "short",
        "Spikes before the loss does: the learning rate is too high, or a batch is odd.",
        _figures("grad_norm"),
    ),
    Panel(
        "Learning rate",
        "short",
        "Warm-up, then down, as the schedule says.",
        _figures("learning_rate"),
    ),
)

POLICY = (
    Panel(
        "Reward",
        "short",
        "Rises, and the KL with it. Rises while answers grow longer and longer: it is being gamed.",
        _figures("reward"),
    ),
    Panel(
        "KL to the reference",
        "short",
        "Nats per answer. Beyond the target for long: raise its coefficient.",
        _figures("kl"),
    ),
    Panel(
        "Gap between trainer and sampler",
        "short",
        "Largest |difference of log p|, relative. 1e-5 is the fast mode's own; at gap_limit the "
        "run ends (PolicyGapNearBound).",
        _figures("gap", "gap_limit"),
    ),
    Panel(
        "How far an update moved the policy",
        "short",
        "Nats per token; some 0.02 is usual; at max_update_kl the run ends. Rises: lower the rate.",
        _figures("update_kl"),
    ),
    Panel(
        "Groups that taught nothing, and steps that were dropped",
        "short",
        "Groups of equal rewards: prompts that are always solved, or never. Dropped at stop_kl.",
        _figures("zero_variance_groups", "dropped_steps"),
    ),
    Panel(
        "Entropy, and ratios that were clipped",
        "short",
        "Entropy near 0: the policy says one thing only. Clipped above a fifth: too large steps.",
        _figures("entropy", "clipped"),
    ),
    Panel(
        "Length of answers, and those that ended by themselves",
        "short",
        "Length at its limit and few that end: max_new_tokens cuts them, or the end is unlearned.",
        _figures("length", "ended"),
    ),
    Panel(
        "Where an update's time goes",
        "s",
        "Sampling dominates: more shards, or one step ahead. Scoring: more reward replicas.",
        (
            Query(
                'plinth_trainer_figure{model=~"$model", figure=~"seconds_.*"}',
                "{{figure}} {{model}}",
            ),
        ),
        stack=True,
    ),
)

AROUND = (
    Panel(
        "Rollout tasks",
        "ops",
        "Refused: weights that are not what was sent (RolloutsRefused). Lost: shards that died.",
        (Query(f"sum by (outcome) (rate(plinth_rollout_tasks_total[{_RATE}]))", "{{outcome}}"),),
        stack=True,
    ),
    Panel(
        "Tokens sampled for policies",
        "tokps",
        "What room the chats left.",
        (Query(f"sum(rate(plinth_rollout_tokens_total[{_RATE}]))", "tokens"),),
    ),
    Panel(
        "Reward tasks",
        "ops",
        "Failed ones are dead letters with a reason; retried ones mostly missed the tokenizer.",
        (Query(f"sum by (end) (rate(plinth_reward_tasks_total[{_RATE}]))", "{{end}}"),),
        stack=True,
    ),
    Panel(
        "Tokens read by reward models",
        "tokps",
        "The speed of learned rewards.",
        (Query(f"sum(rate(plinth_reward_tokens_total[{_RATE}]))", "tokens"),),
    ),
    Panel(
        "Sequences that share a launch of a reward model",
        "short",
        "Half have fewer than this. Near 1 under load: tasks come one by one, or are very long.",
        (
            Query(
                "histogram_quantile(0.5, sum by (le) "
                f"(rate(plinth_reward_batch_sequences_bucket[{_RATE}])))",
                "median",
            ),
        ),
    ),
    Panel(
        "Live answers that became preference tasks",
        "ops",
        "By what became of them. 0 with consent given: gateway.preference_sampling_rate is 0.",
        (Query(f"sum by (outcome) (rate(plinth_live_preferences_total[{_RATE}]))", "{{outcome}}"),),
        stack=True,
    ),
)

BOARD = Board(
    "plinth-training",
    "Plinth: training and alignment",
    "Jobs, what they learn, and what feeds them.",
    (
        ("Jobs", JOBS),
        ("Data", DATA),
        ("Learning", LEARNING),
        ("Policy", POLICY),
        ("Rollouts, rewards, preferences", AROUND),
    ),
    (Choice("model", "plinth_trainer_progress_ratio", "model"),),
)
