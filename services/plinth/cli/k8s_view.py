"""What `plinth k8s` shows on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plinth.cli.chat import printable
from plinth.cli.stack_table import section, shards_of

if TYPE_CHECKING:
    from plinth.v1 import gateway_pb2

ERROR_CHARS = 160


def status_screen(found: dict[str, Any]) -> RenderableType:
    """One screen of `plinth.cluster.kubernetes_ops.status.gather`."""
    release = found["release"]
    words = (release["name"], f"in {release['namespace']}", release["version"], release["mode"])
    head = Text("  ".join((*words, release["ray"])).rstrip(), "bold")
    parts: list[RenderableType] = [head, _stages(found["stages"])]
    parts += section(
        "replicas",
        ("stage", "pod", "node", "running", "waiting", "KV", "revision"),
        (
            (
                r["stage"],
                r["pod"] or r["address"],
                r["node"],
                str(r["running"]),
                str(r["waiting"]),
                _percent(r["kv_use"]),
                " ".join(r["revisions"]),
            )
            for r in found["replicas"]
        ),
    )
    parts += section(
        "models",
        ("name", "revision", "shards", "state"),
        ((m["name"], m["artifact"], shards_of(m), m["state"]) for m in found["models"]),
    )
    parts += section(
        "canaries",
        ("name", "state", "run", "requests", "errors", "TTFT p95"),
        ((c["name"], c["state"], c["owner"], *_versus(c)) for c in found["canaries"]),
    )
    parts += section(
        "queues",
        ("queue", "waiting", "claimed", "delayed", "dead"),
        (
            (q["name"], *(str(q[k]) for k in ("waiting", "claimed", "delayed", "dead")))
            for q in found["queues"]
        ),
    )
    parts += section(
        "runs",
        ("run", "state", "steps"),
        ((r["run_id"], r["state"], f"{r['steps_done']}/{r['steps']}") for r in found["runs"]),
    )
    parts += section(
        "last errors",
        ("where", "what"),
        ((e["where"], printable(e["what"])[:ERROR_CHARS]) for e in found["errors"]),
    )
    parts += [
        Text.from_markup(f"[yellow]{what} not known:[/] {escape(why)}")
        for what, why in found["unknown"].items()
    ]
    return Group(*parts)


def canary_table(canary: gateway_pb2.CanaryStatus) -> RenderableType:
    """The gate's figures, both revisions side by side."""
    table = Table("", "requests", "errors", "TTFT p95", "good", "bad", box=None, padding=(0, 2))
    for role, tally in (("stable", canary.stable), ("canary", canary.canary)):
        slow = _seconds(tally.ttft_p95_s if tally.HasField("ttft_p95_s") else None)
        counts = (tally.requests, tally.errors, slow, tally.good, tally.bad)
        table.add_row(role, *(str(count) for count in counts))
    return table


def _stages(stages: Iterable[dict[str, Any]]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = ("", "stage", "pods", "restarts", "replicas", "running", "waiting", "KV", "revisions")
    for title in titles:
        table.add_column(title)
    for one in stages:
        well = one["ready"] >= one["wanted"]
        table.add_row(
            Text.from_markup("[green]●[/]" if well else "[red]✗[/]" if one["wanted"] else "○"),
            one["stage"],
            f"{one['ready']}/{one['wanted']}",
            str(one["restarts"] or ""),
            str(one["replicas"] or ""),
            str(one["running"] or ""),
            str(one["waiting"] or ""),
            _percent(one["kv_use"]),
            escape(" ".join(one["revisions"])),
        )
    return table


def _versus(canary: dict[str, Any]) -> tuple[str, str, str]:
    stable, new = canary["stable"], canary["canary"]
    return (
        f"{new['requests']} beside {stable['requests']}",
        f"{new['errors']} beside {stable['errors']}",
        f"{_seconds(new['ttft_p95_s'])} beside {_seconds(stable['ttft_p95_s'])}",
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f} s"
