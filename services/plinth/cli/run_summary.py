"""What a run tells when it has ended: figures, answers, warnings, lineage. Knows no gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from plinth.cli import training_view
from plinth.cli.chat import printable
from plinth.cli.contest_view import contest
from plinth.cli.run_outcome import promotions
from plinth.cli.run_view import made, metrics
from plinth.cli.tables import WholeTable
from plinth.shared.artifact_messages import kind_of, reference_of
from plinth.shared.differences import beside
from plinth.shared.intake import Intake, intakes_of
from plinth.v1 import artifacts_pb2
from plinth.v1 import runs_pb2 as pb

_OF_MODELS = frozenset(
    {pb.STEP_KIND_SERVE, pb.STEP_KIND_PUBLISH, pb.STEP_KIND_TRAIN, pb.STEP_KIND_CANARY}
)
# How deep a lineage is drawn.
_GENERATIONS = 8


def summary(run: pb.Run, artifact: Callable[[str], artifacts_pb2.Artifact]) -> RenderableType:
    """What came of a run that succeeded: figures, answers, lineage of the served model."""
    parts: list[RenderableType] = [*warnings(run)]
    exams = [metrics(step) for step in run.status.steps if step.kind == pb.STEP_KIND_EVALUATE]
    if exams:
        parts.append(_figures(run, exams))
        parts += [_answer(answer) for exam in exams for answer in exam.get("answers", [])]
    trained = training_view.table({step.step_id: metrics(step) for step in run.status.steps})
    if trained is not None:
        parts.append(trained)
    for step in run.status.steps:
        if step.kind == pb.STEP_KIND_COMPARE:
            parts.append(contest(metrics(step)))
        elif step.kind == pb.STEP_KIND_CANARY and "canary" in metrics(step):
            parts.append(_trial(metrics(step)))
        elif step.kind == pb.STEP_KIND_VERIFY and "sides" in metrics(step):
            parts.append(_verified(metrics(step)))
    served = [step for step in run.status.steps if step.kind in _OF_MODELS]
    if served:
        parts += [Text("lineage", "bold"), lineage(made(served[-1]), artifact)]
    parts += [Text(f"\n{line}", "bold") for line in promotions(run)]
    return Group(*parts)


def warnings(run: pb.Run) -> Iterator[RenderableType]:
    """Of what steps left out, past a tenth of what they were given, and of what they damaged."""
    for step in run.status.steps:
        figures = metrics(step)
        told = [_left_out(step.step_id, intake) for intake in intakes_of(figures) if intake.warns]
        for said in (*told, *training_view.warnings(step.step_id, figures)):
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
    for step in run.status.steps:
        figures = metrics(step)
        if step.kind == pb.STEP_KIND_TRAIN and figures.get("tokens_per_second"):
            speed = f"{figures['tokens_per_second']:,.0f} tokens/s in training"
            table.add_row(step.step_id, f"{speed}, {figures['steps']:,.0f} steps")
    for name in ("checks", "harmlessness", "honesty"):
        for exam in exams:
            if name in exam:
                table.add_row(name, f"{exam[name]['passed']} of {exam[name]['of']} passed")
    rates = [exam["tokens_per_second"] for exam in exams if exam.get("answers")]
    if rates:
        table.add_row("answers", f"{rates[-1]:,.0f} tokens/s, one stream")
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


def lineage(reference: str, artifact: Callable[[str], artifacts_pb2.Artifact]) -> Tree:
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


def _node(found: artifacts_pb2.Artifact) -> Text:
    aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
    digest = found.digest.removeprefix("sha256:")[:12]
    return Text.assemble(
        (reference_of(found), "bold"), f"{aliases}  {kind_of(found)}  ", (digest, "dim")
    )
