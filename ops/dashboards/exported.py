"""What the code tells Prometheus, found by importing the modules that declare it; and what a query
asks for, so that dashboards and alerts can be held to the code."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

SERVICES = Path(__file__).resolve().parents[2] / "services"
# What Prometheus or its discovery puts on every series that it scrapes.
TARGET_LABELS = frozenset({"job", "instance", "namespace", "pod", "service", "replica", "spares"})
_POLICY = "a policy run (PPO, GRPO, RLOO) is on"
# Series that are not there from the start, by what a query holds that asks for them: what must have
# happened.
APPEARS = {
    'code=~"5..|(STREAM_)?(INTERNAL': "a request has failed",
    'queue!="trainer-jobs"': "a queue other than the trainer's has been used",
    "plinth_streams_resumed_total": "an answer lost its shard and went on at another",
    "plinth_ignored_fields_total": "a client sent a field that has no effect",
    "plinth_streams_paused_total": "a client read more slowly than its shard made tokens",
    "plinth_rpc_slow_readers_total": "a caller of a stream did not read it",
    "plinth_reward_tasks_total": "answers were scored through the reward stage's queue",
    "plinth_live_preferences_total": "live answers are sampled (gateway.preference_sampling_rate)",
    "plinth_tls_certificate_expiry_timestamp_seconds": "stages, or the gateway, speak TLS",
    'figure="reward"': _POLICY,
    'figure="kl"': _POLICY,
    'figure="gap': _POLICY,
    'figure="entropy"': _POLICY,
    'figure="clipped"': _POLICY,
    'figure="length"': _POLICY,
    'figure="ended"': _POLICY,
    'figure=~"seconds_': _POLICY,
}
_DECLARES = re.compile(r"^_?[A-Z_0-9]+(?:: \w+)? = (?:counter|gauge|histogram)\(", re.MULTILINE)
_OWN = re.compile(r"\b(?:plinth[_:][\w:]+|process_\w+|up\b)(?:\{[^}]*\})?")
_GROUPING = re.compile(r"\b(?:by|on|group_left|without|ignoring)\s*\(([^)]*)\)")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


@dataclass(frozen=True)
class Family:
    """One metric: its type, and the labels that tell its series apart."""

    name: str
    kind: str
    labels: frozenset[str]

    def series(self) -> Iterator[tuple[str, frozenset[str]]]:
        """(name in a query, its labels): a histogram has three."""
        for suffix in _SUFFIXES.get(self.kind, ("",)):
            extra = {"le"} if suffix == "_bucket" else set()
            yield self.name + suffix, self.labels | extra


@cache
def families() -> dict[str, Family]:
    """By name, without the suffixes of their series."""
    found: dict[str, Family] = {}
    for path in sorted((SERVICES / "plinth").rglob("*.py")):
        if _DECLARES.search(path.read_text()):
            name = ".".join(path.relative_to(SERVICES).with_suffix("").parts)
            for value in vars(importlib.import_module(name)).values():
                if isinstance(value, MetricWrapperBase):
                    family = _family(value)
                    found[family.name] = family
    return found


def _family(metric: Any) -> Family:
    (described,) = metric.describe()
    return Family(described.name, described.type, frozenset(metric._labelnames))


@cache
def series() -> dict[str, frozenset[str]]:
    """Every series that a query may name, with its labels: Plinth's, and each Python process's."""
    families()
    known = {"up": frozenset[str]()}
    for collected in REGISTRY.collect():
        if collected.name.startswith("process_"):
            known |= dict(Family(collected.name, collected.type, frozenset()).series())
    for family in families().values():
        known |= dict(family.series())
    return known


def appears(expr: str) -> str | None:
    """When a query begins to find something, where that is not at once."""
    return next((when for part, when in APPEARS.items() if part in expr), None)


def recorded(rules: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """What the recording rules among `rules` make, and the labels that their `by` leaves."""
    return {
        rule["record"]: frozenset(re.findall(r"by \((\w+)\)", rule["expr"]))
        for rule in rules
        if "record" in rule
    }


def conditions(expr: str, rules: Sequence[Mapping[str, Any]]) -> set[str]:
    """What must have happened before everything that `expr` asks for is there, through the
    recording rules among `rules`."""
    records = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    found: set[str] = set()
    for selector in selectors_in(expr):
        name = selector.partition("{")[0]
        if name in records:
            found |= conditions(records[name], rules)
        elif when := appears(selector):
            found.add(when)
    return found


def selectors_in(expr: str) -> set[str]:
    """The series that a query asks for, with its matchers."""
    return {found[0] for found in _OWN.finditer(expr)}


def metrics_in(expr: str) -> set[str]:
    """Names of the series that a query asks for."""
    return {selector.partition("{")[0] for selector in selectors_in(expr)}


def faults(expr: str, made: Mapping[str, frozenset[str]] | None = None) -> list[str]:
    """What is wrong with a query: a series that nobody exports, a label that it doesn't have.

    made: what recording rules make, as `recorded` tells it.
    """
    known = series() | dict(made or {})
    wrong, labels = [], set(TARGET_LABELS)
    for found in _OWN.finditer(expr):
        name, _, matchers = found[0].partition("{")
        if name not in known:
            wrong.append(f"{name} is exported by nobody")
            continue
        own = known[name] | TARGET_LABELS
        labels |= own
        # Values may hold anything; what is left without them are names and operators.
        for label in _MATCHER.findall(re.sub(r'"[^"]*"', '""', matchers)):
            if label not in own:
                wrong.append(f"{name} has no label {label!r}")
    for group in _GROUPING.findall(expr):
        wrong += [
            f"nothing in the query has the label {label!r}"
            for label in re.findall(r"\w+", group)
            if label not in labels
        ]
    return wrong
