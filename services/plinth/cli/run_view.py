"""How a run looks while it runs: a table that lives on a terminal, plain lines elsewhere. Knows no
gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from plinth.cli import training_view
from plinth.shared.api.enums import word
from plinth.shared.api.structs import plain_values
from plinth.shared.api.times import unix_ms
from plinth.shared.intake import intakes_of
from plinth.v1 import runs_pb2 as pb

_MARKS = {
    pb.STEP_STATE_PENDING: ("·", "dim"),
    pb.STEP_STATE_SUCCEEDED: ("●", "green"),
    pb.STEP_STATE_REUSED: ("○", "green"),
    pb.STEP_STATE_FAILED: ("✗", "red"),
    pb.STEP_STATE_CANCELLED: ("–", "yellow"),
}
# Without a terminal a running step says how far it is at most this often.
_QUIET_S = 10.0


def state_word(run: pb.Run) -> str:
    return word(pb.RunState, run.status.state)


def step_word(step: pb.Step) -> str:
    return word(pb.StepState, step.state)


class RunView:
    """A run as a table; rendered again and again while it runs."""

    def __init__(self) -> None:
        self.run = pb.Run()
        self._spinner = Spinner("dots")

    def __rich__(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("", "step", "kind", "progress", "time", ""):
            table.add_column(title, justify="right" if title == "time" else "left")
        for step in self.run.status.steps:
            running = step.state == pb.STEP_STATE_RUNNING
            mark, style = _MARKS.get(step.state, ("", "cyan"))
            table.add_row(
                self._spinner if running else Text(mark, style),
                Text(step.step_id, "bold" if running else ""),
                Text(word(pb.StepKind, step.kind), "dim"),
                ProgressBar(completed=100 * step.progress, width=16) if running else "",
                took(step),
                Text(about(step), overflow="ellipsis", no_wrap=True),
            )
        head = Text.assemble(
            "run ", (self.run.name.removeprefix("runs/"), "bold"), f"  {state_word(self.run)}"
        )
        return Group(head, table)


def follow(console: Console, runs: Iterable[pb.Run]) -> pb.Run:
    """Shows the run until its stream ends; its last state."""
    view = RunView()
    if not console.is_terminal:
        lines = PlainLines()
        for run in runs:
            view.run = run
            for line in lines.update(run):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        return view.run
    with Live(view, console=console, refresh_per_second=8):
        for run in runs:
            view.run = run
    return view.run


class PlainLines:
    """A run as lines, where there is no terminal."""

    def __init__(self) -> None:
        self._before = pb.Run()
        self._said: dict[str, tuple[float, str]] = {}  # step → when (monotonic), and its detail

    def update(self, run: pb.Run) -> Iterator[str]:
        """What is worth a line of its own since the last update."""
        old = {step.step_id: step for step in self._before.status.steps}
        for step in run.status.steps:
            last = old.get(step.step_id)
            changed = last is None or last.state != step.state
            if changed and step.state == pb.STEP_STATE_PENDING:
                continue
            running = step.state == pb.STEP_STATE_RUNNING
            # Against what was said last, not against the last update: what a step told in between
            # may be all that it tells for hours (that it waits), so its first word comes at once.
            when, said = self._said.get(step.step_id, (0.0, ""))
            due = not said or time.monotonic() - when > _QUIET_S
            if changed or (running and said != step.detail and due):
                self._said[step.step_id] = (time.monotonic(), step.detail)
                word = step_word(step)
                yield f"{step.step_id:<20} {word:<10} {took(step):>7}  {about(step)}".rstrip()
        if self._before.status.state != run.status.state:
            yield f"run {run.name.removeprefix('runs/')} {state_word(run)}"
        self._before = run


def took(step: pb.Step) -> str:
    """How long the step ran, or runs."""
    if not step.HasField("start_time"):
        return ""
    end = unix_ms(step.end_time) or time.time_ns() // 1_000_000
    seconds = max(0, end - unix_ms(step.start_time)) / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"


def about(step: pb.Step) -> str:
    """One line: where it is, why it failed, or what it made."""
    if step.state == pb.STEP_STATE_FAILED:
        return step.error
    if step.state not in {pb.STEP_STATE_SUCCEEDED, pb.STEP_STATE_REUSED}:
        return step.detail
    figures = metrics(step)
    parts = [made(step)]
    if "bits_per_byte" in figures:
        parts.append(
            f"{figures['bits_per_byte']:.3f} bits per byte held out, "
            f"5-gram {figures['ngram_bits_per_byte']:.3f}{_size(figures)}"
        )
    elif (trained := training_view.line(figures)) is not None:
        parts.append(trained)
    elif "loss" in figures:
        rate, held_out = figures.get("tokens_per_second"), figures.get("validation_loss")
        told = f"loss {figures['loss']:.3f}"
        told += f" (held out {held_out:.3f})" if held_out is not None else ""
        parts.append(told + (f", {rate:,.0f} tokens/s" if rate else ""))
    elif "sides" in figures:
        before, after = (figures["sides"][side]["pass_rate"] for side in ("baseline", "model"))
        parts.append(f"{after:.0%} of the answers pass, {before:.0%} before")
    elif "reward" in figures and "answers" in figures:
        parts.append(f"{figures['answers']:,} answers, mean reward {figures['reward']:.3f}")
    elif "winner" in figures:
        parts.append(figures.get("why", ""))
    elif "alias" in figures:
        parts.append(f"is {figures['alias']}")
    elif "name" in figures:
        parts.append(f"served as {figures['name']}")
    parts += [intake.line() for intake in intakes_of(figures)]
    if step.state == pb.STEP_STATE_REUSED:
        parts.append("(as before)")
    return "  ".join(parts)


def _size(figures: dict[str, Any]) -> str:
    """Of what an exam was held on: it reads no more than it needs."""
    if "held_out_bytes" not in figures:
        return ""
    documents, size = figures["held_out_documents"], figures["held_out_bytes"]
    return f", on {documents:,} documents of {size / 1e6:.1f} MB"


def metrics(step: pb.Step) -> dict[str, Any]:
    return plain_values(step.metrics)


def made(step: pb.Step) -> str:
    """The artifact that a step made, "chat@7"; empty without."""
    return step.artifact.removeprefix("artifacts/")
