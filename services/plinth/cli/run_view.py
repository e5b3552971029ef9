"""How a run looks on a screen: a table that lives on a terminal, plain lines elsewhere, and the
summary at its end. Knows no gRPC."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from plinth.cli import training_view
from plinth.cli.chat import printable
from plinth.cli.contest_view import contest
from plinth.cli.run_outcome import promotions
from plinth.cli.tables import WholeTable
from plinth.shared.differences import beside
from plinth.shared.intake import Intake, intakes_of
from plinth.v1 import common_pb2
from plinth.v1 import coordinator_pb2 as pb

_MARKS = {
    pb.STEP_STATE_PENDING: ("·", "dim"),
    pb.STEP_STATE_SUCCEEDED: ("●", "green"),
    pb.STEP_STATE_REUSED: ("○", "green"),
    pb.STEP_STATE_FAILED: ("✗", "red"),
    pb.STEP_STATE_CANCELLED: ("–", "yellow"),
}
# Without a terminal a running step says how far it is at most this often.
_QUIET_S = 10.0
# How deep a lineage is drawn.
_GENERATIONS = 8


def state_word(run: pb.Run) -> str:
    return pb.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()


def step_word(step: pb.Step) -> str:
    return pb.StepState.Name(step.state).removeprefix("STEP_STATE_").lower()


class RunView:
    """A run as a table; rendered again and again while it runs."""

    def __init__(self) -> None:
        self.run = pb.Run()
        self._spinner = Spinner("dots")

    def __rich__(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("", "step", "kind", "progress", "time", ""):
            table.add_column(title, justify="right" if title == "time" else "left")
        for step in self.run.steps:
            running = step.state == pb.STEP_STATE_RUNNING
            mark, style = _MARKS.get(step.state, ("", "cyan"))
            table.add_row(
                self._spinner if running else Text(mark, style),
                Text(step.name, "bold" if running else ""),
                Text(step.kind, "dim"),
                ProgressBar(completed=100 * step.progress, width=16) if running else "",
                took(step),
                Text(about(step), overflow="ellipsis", no_wrap=True),
            )
        head = Text.assemble("run ", (self.run.run_id, "bold"), f"  {state_word(self.run)}")
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
        old = {step.name: step for step in self._before.steps}
        for step in run.steps:
            last = old.get(step.name)
            changed = last is None or last.state != step.state
            if changed and step.state == pb.STEP_STATE_PENDING:
                continue
            running = step.state == pb.STEP_STATE_RUNNING
            # Against what was said last, not against the last update: what a step told in between
            # may be all that it tells for hours (that it waits), so its first word comes at once.
            when, said = self._said.get(step.name, (0.0, ""))
            due = not said or time.monotonic() - when > _QUIET_S
            if changed or (running and said != step.detail and due):
                self._said[step.name] = (time.monotonic(), step.detail)
                word = step_word(step)
                yield f"{step.name:<20} {word:<10} {took(step):>7}  {about(step)}".rstrip()
        if self._before.state != run.state:
            yield f"run {run.run_id} {state_word(run)}"
        self._before = run


def took(step: pb.Step) -> str:
    """How long the step ran, or runs."""
    if not step.started_unix_ms:
        return ""
    end = step.finished_unix_ms or time.time_ns() // 1_000_000
    seconds = max(0, end - step.started_unix_ms) / 1000
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
    parts = [step.output]
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
    figures: dict[str, Any] = json.loads(step.metrics_json) if step.metrics_json else {}
    return figures


def summary(run: pb.Run, artifact: Callable[[str], common_pb2.Artifact]) -> RenderableType:
    """What came of a run that succeeded: figures, answers, lineage of the served model."""
    parts: list[RenderableType] = [*warnings(run)]
    exams = [metrics(step) for step in run.steps if step.kind == "evaluate"]
    if exams:
        parts.append(_figures(run, exams))
        parts += [_answer(answer) for exam in exams for answer in exam.get("answers", [])]
    trained = training_view.table({step.name: metrics(step) for step in run.steps})
    if trained is not None:
        parts.append(trained)
    for step in run.steps:
        if step.kind == "compare":
            parts.append(contest(metrics(step)))
        elif step.kind == "canary" and "canary" in metrics(step):
            parts.append(_trial(metrics(step)))
        elif step.kind == "verify" and "sides" in metrics(step):
            parts.append(_verified(metrics(step)))
    kinds = {"serve", "publish", "train", "canary"}
    served = [step for step in run.steps if step.kind in kinds]
    if served:
        parts += [Text("lineage", "bold"), lineage(served[-1].output, artifact)]
    parts += [Text(f"\n{line}", "bold") for line in promotions(run)]
    return Group(*parts)


def warnings(run: pb.Run) -> Iterator[RenderableType]:
    """Of what steps left out, past a tenth of what they were given, and of what they damaged."""
    for step in run.steps:
        figures = metrics(step)
        told = [_left_out(step.name, intake) for intake in intakes_of(figures) if intake.warns]
        for said in (*told, *training_view.warnings(step.name, figures)):
            yield Text.assemble(("warning  ", "bold yellow"), said)


def _left_out(step: str, intake: Intake) -> str:
    advice = f". {intake.remedy}" if intake.remedy else ""
    return f"{step} took {intake.line()} ({intake.share:.0%} left out){advice}"


def _figures(run: pb.Run, exams: list[dict[str, Any]]) -> RenderableType:
    best = max(exams, key=lambda exam: float(exam["below_ngram"]))
    table = WholeTable("", "")
    table.show_header = False
    table.add_row(
        "held out",
        f"{best['bits_per_byte']:.3f} bits per byte; byte-level 5-gram on the same text "
        f"{best['ngram_bits_per_byte']:.3f} ({beside(best['below_ngram'])} it)",
    )
    for step in run.steps:
        figures = metrics(step)
        if step.kind == "train" and figures.get("tokens_per_second"):
            speed = f"{figures['tokens_per_second']:,.0f} tokens/s in training"
            table.add_row(step.name, f"{speed}, {figures['steps']:,.0f} steps")
    for name in ("checks", "harmlessness", "honesty"):
        for exam in exams:
            if name in exam:
                table.add_row(name, f"{exam[name]['passed']} of {exam[name]['of']} passed")
    made = [exam["tokens_per_second"] for exam in exams if exam.get("answers")]
    if made:
        table.add_row("answers", f"{made[-1]:,.0f} tokens/s, one stream")
    return table


def _trial(figures: dict[str, Any]) -> RenderableType:
    """A canary and the revision that it took over from, as their users saw them."""
    table = WholeTable()
    for title in (figures["name"], "requests", "errors", "p95 to first token", "good", "bad"):
        table.add_column(title, justify="left" if title == figures["name"] else "right")
    for role in ("stable", "canary"):
        one = figures[role]
        first = one["ttft_p95_s"]
        table.add_row(
            role,
            f"{one['requests']:,}",
            f"{one['errors']:,}",
            "" if first is None else f"{first:.3f} s",
            f"{one['good']:,}",
            f"{one['bad']:,}",
        )
    return table


def _verified(figures: dict[str, Any]) -> RenderableType:
    """Before and after: figures, then answers side by side."""
    table = WholeTable()
    for title in ("model", "passes", "95 % interval", "below own 5 %", "log p / token"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for side in ("baseline", "model"):
        one = figures["sides"][side]
        table.add_row(
            str(figures["models"][side]),
            f"{one['pass_rate']:.1%}",
            f"{one['pass_rate_low']:.1%} to {one['pass_rate_high']:.1%}",
            f"{one['unlikely']:.1%}",
            f"{one['logprob']:.3f}",
        )
    told: list[RenderableType] = [table]
    for shown in figures["shown"]:
        pair = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        pair.add_column("before", ratio=1)
        pair.add_column("after", ratio=1)
        pair.add_row(*(Text(printable(str(shown[side])).strip()) for side in ("before", "after")))
        told += [Text(f"\n> {shown['prompt']}", "bold"), pair]
    return Group(*told)


def _answer(answer: dict[str, Any]) -> RenderableType:
    text = printable(str(answer["answer"])).strip() or "(nothing)"
    return Group(Text(f"\n> {answer['prompt']}", "bold"), Text(text))


def lineage(reference: str, artifact: Callable[[str], common_pb2.Artifact]) -> Tree:
    """The artifact and what it was made from, back to the corpus."""

    def grow(branch: Tree, ref: str, generations: int) -> None:
        found = artifact(ref)
        node = branch.add(_node(found))
        for parent in found.parents if generations else ():
            if "@" in parent:
                grow(node, parent, generations - 1)
            else:
                node.add(Text(parent[:30], "dim"))

    root = Tree("", hide_root=True)
    grow(root, reference, _GENERATIONS)
    return root


def _node(found: common_pb2.Artifact) -> Text:
    aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
    digest = found.digest.removeprefix("sha256:")[:12]
    return Text.assemble(
        (f"{found.name}@{found.version}", "bold"), f"{aliases}  {found.kind}  ", (digest, "dim")
    )
