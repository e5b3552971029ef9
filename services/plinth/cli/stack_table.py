"""What `up`, `status` and `doctor` show on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from plinth.cli.chat import printable
from plinth.cli.tables import WholeTable

if TYPE_CHECKING:
    from plinth.cluster.finding import Finding
    from plinth.cluster.stack import StackEvent

MIB = 1 << 20
ERROR_CHARS = 160
_MARKS = {"ready": "[green]●[/]", "failed": "[red]✗[/]", "restarting": "[yellow]↻[/]"}
_LEVELS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


class UpTable:
    """Rows by component, in the order in which they first appear; seconds run until ready."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._rows: dict[str, StackEvent] = {}
        self._spinner = Spinner("dots")

    def update(self, event: StackEvent) -> str:
        """Takes an event; returns it as a plain line."""
        self._rows[event.component] = event
        state = event.state
        rest = " ".join(part for part in (state.address, state.detail) if part)
        return f"{event.seconds:6.1f} s  {event.component:<20} {state.state:<10} {rest}".rstrip()

    def __rich__(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("", "component", "state", "seconds", "address"):
            table.add_column(title, justify="right" if title == "seconds" else "left")
        now = time.monotonic() - self._began
        for name, event in self._rows.items():
            state = event.state
            waits = state.state not in _MARKS
            seconds = event.seconds if state.state == "ready" else now
            where = state.address or escape(state.detail[:60])
            mark: RenderableType = self._spinner if waits else Text.from_markup(_MARKS[state.state])
            table.add_row(mark, name, state.state, f"{seconds:.1f}", where)
        return table


def status_screen(found: dict[str, Any]) -> RenderableType:
    """One screen of `plinth.cluster.status.gather`."""
    stack = found["stack"]
    memory = sum(process["memory_bytes"] for process in found["processes"])
    head = Text.from_markup(
        f"[bold]{stack['phase']}[/] for {_duration(stack['up_s'])}   "
        f"{stack['url']}   gRPC {stack['grpc']}   {len(found['processes'])} processes, "
        f"{memory / MIB / 1024:.2f} GiB   {escape(stack['data_dir'])}"
    )
    parts: list[RenderableType] = [head, _components(found["components"])]
    columns = ("stage", "address", "running", "waiting", "KV", "revision", "id")
    parts += section("replicas", columns, map(_replica, found["replicas"]))
    return Group(*parts, *platform_sections(found))


def platform_sections(found: dict[str, Any]) -> list[RenderableType]:
    """What a stack and a release on Kubernetes have alike."""
    parts = section(
        "models",
        ("name", "revision", "shards", "state"),
        ((m["model"], m["artifact"], shards_of(m), m["state"]) for m in found["models"]),
    )
    parts += section(
        "canaries",
        ("name", "state", "run", "requests", "errors", "TTFT p95"),
        ((c["model"], c["state"], c["step"], *_versus(c)) for c in found["canaries"]),
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
        ("run", "name", "state", "steps"),
        (
            (r["run_id"], r["name"], r["state"], f"{r['steps_done']}/{r['steps']}")
            for r in found["runs"]
        ),
    )
    parts += section(
        "last errors",
        ("where", "what"),
        ((e["where"], printable(e["what"])[:ERROR_CHARS]) for e in found["errors"]),
    )
    return parts + [
        Text.from_markup(f"[yellow]{what} not known:[/] {escape(why)}")
        for what, why in found["unknown"].items()
    ]


def doctor_screen(findings: Iterable[Finding]) -> RenderableType:
    """The findings, each with its advice below."""
    table = WholeTable("", "check", "", texts=("",))
    table.show_header = False
    for finding in findings:
        found = escape(finding.found)
        if finding.advice:
            found += f"\n[bold]→ {escape(finding.advice)}[/]"
        table.add_row(_LEVELS[finding.level], finding.check, found)
    return table


def _components(components: dict[str, dict[str, Any]]) -> RenderableType:
    table = WholeTable("", "component", "state", "pid", "restarts", "address", texts=())
    for name, part in components.items():
        table.add_row(
            Text.from_markup(_MARKS.get(part["state"], "○")),
            name,
            part["state"],
            str(part["pid"] or ""),
            str(part["restarts"] or ""),
            part["address"] or escape(part["detail"][:60]),
        )
    return table


def _replica(replica: dict[str, Any]) -> Sequence[str]:
    return (
        replica["stage"],
        replica["address"],
        str(replica["running"]),
        str(replica["waiting"]),
        percent(replica["kv_use"]),
        " ".join(replica["revisions"]),
        replica["replica_id"],
    )


def section(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> list[RenderableType]:
    """A table under its title; nothing without rows."""
    table = WholeTable(*columns, texts=("what", "state"))
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return [Text.from_markup(f"\n[bold]{title}[/]"), table] if table.row_count else []


def shards_of(model: dict[str, Any]) -> str:
    """Ready ones of those wanted now; between which numbers, where load decides."""
    ready = f"{model['ready']}/{model['shards']}"
    # A platform of an older version does not tell of them.
    least, most = model.get("min_shards", 0), model.get("max_shards", 0)
    return f"{ready} ({least}-{most})" if most > least else ready


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _versus(canary: dict[str, Any]) -> tuple[str, str, str]:
    stable, new = canary["stable"], canary["canary"]
    return (
        f"{new['requests']} beside {stable['requests']}",
        f"{new['errors']} beside {stable['errors']}",
        f"{seconds(new['ttft_p95_s'])} beside {seconds(stable['ttft_p95_s'])}",
    )


def percent(share: float | None) -> str:
    """Empty for None."""
    return "" if share is None else f"{share:.0%}"


def seconds(value: float | None) -> str:
    """To the millisecond; a question mark for None."""
    return "?" if value is None else f"{value:.3f} s"
