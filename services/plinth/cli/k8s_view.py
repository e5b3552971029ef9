"""What `plinth k8s` shows on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plinth.cli.stack_table import percent, platform_sections, seconds, section
from plinth.cli.tables import WholeTable
from plinth.shared.api import times

if TYPE_CHECKING:
    from plinth.v1 import operations_pb2


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
                percent(r["kv_use"]),
                " ".join(r["revisions"]),
            )
            for r in found["replicas"]
        ),
    )
    return Group(*parts, *platform_sections(found))


def canary_table(canary: operations_pb2.CanaryStatus) -> RenderableType:
    """The gate's figures, both revisions side by side."""
    table = Table("", "requests", "errors", "TTFT p95", "good", "bad", box=None, padding=(0, 2))
    for role, tally in (("stable", canary.stable), ("canary", canary.canary)):
        slow = seconds(times.seconds(tally.ttft_p95) if tally.HasField("ttft_p95") else None)
        counts = (tally.requests, tally.errors, slow, tally.good, tally.bad)
        table.add_row(role, *(str(count) for count in counts))
    return table


def _stages(stages: Iterable[dict[str, Any]]) -> RenderableType:
    titles = ("", "stage", "pods", "restarts", "replicas", "running", "waiting", "KV", "revisions")
    table = WholeTable(*titles, texts=())
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
            percent(one["kv_use"]),
            escape(" ".join(one["revisions"])),
        )
    return table
