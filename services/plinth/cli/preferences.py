"""`plinth preferences`: judge responses on the terminal, and see what the judgements say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import REFUSE_ABOVE, Intake, check_intake
from plinth.shared.messages import PAGE, TO_UTF8

if TYPE_CHECKING:
    from plinth.cli.preference_client import PreferenceClient
    from plinth.v1 import preferences_pb2 as pb

SHOWN_CONTRADICTIONS = 20

app = typer.Typer(
    help="Preferences: tasks, judgements, what they say, pairs out and in.",
    no_args_is_help=True,
    add_completion=False,
)

Data = Annotated[Path | None, typer.Option("--data", help="Data directory of the stack.")]
Address = Annotated[
    str | None,
    typer.Option(envvar="PLINTH_URL", help="host:port of a gateway's gRPC API; default: --data's"),
]
Collection = Annotated[
    str, typer.Option("--collection", "-c", help='Which tasks; "live" holds live answers.')
]
Annotator = Annotated[str, typer.Option(help="Your pseudonym; default: the key's id.")]
Seconds = Annotated[int, typer.Option("--lease", min=10, max=86_400, help="Seconds for a task.")]


@app.command()
def tasks(
    add: Annotated[
        Path | None,
        typer.Option(help='JSON lines {"prompt": …, "responses": [text, …]}', exists=True),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    collection: Collection = "default",
    data: Data = None,
    url: Address = None,
) -> None:
    """List the newest tasks; with --add, put new ones there."""
    with _connect(data, url, collection) as client:
        if add is not None:
            typer.echo(f"{client.add(read_tasks(add))} tasks are there")
            return
        listed, counts = client.newest(limit), client.counts()
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "state", "judged", "responses", "origin", ""):
        table.add_column(heading, overflow="fold")
    for one in listed:
        table.add_row(*(Text(cell) for cell in _cells(one)))
    console = Console()
    console.print(table)
    console.print(
        f"{counts.task_count} tasks: {counts.open_task_count} open, "
        f"{counts.leased_task_count} held; {counts.revision} judgements",
        highlight=False,
    )


@app.command("next")
def next_task(
    annotator: Annotator = "",
    lease: Seconds = 900,
    task: Annotated[str, typer.Option(help="A certain task instead of the next.")] = "",
    collection: Collection = "default",
    data: Data = None,
    url: Address = None,
) -> None:
    """Take the next task and print it as JSON, for tools; `judge --task … --fence …` answers it."""
    with _connect(data, url, collection) as client:
        held = client.lease(annotator, lease, task)
    from plinth.shared.api.times import unix_ms
    from plinth.shared.preference_names import TASKS

    shown = {
        "task_id": TASKS.id(held.task),
        "annotator": held.annotator,
        "fence": held.fence,
        "expires_unix_ms": unix_ms(held.expire_time),
        "prompt": [{"role": m.role, "content": m.content} for m in held.prompt],
        "responses": [{"response_id": r.response_id, "text": r.text} for r in held.responses],
    }
    typer.echo(json.dumps(shown, ensure_ascii=False, indent=2))


@app.command()
def judge(
    annotator: Annotator = "",
    lease: Seconds = 900,
    task: Annotated[str, typer.Option(help="Without it: one task after another, by hand.")] = "",
    fence: Annotated[int, typer.Option(min=0, help="Of the lease, as `next` printed it.")] = 0,
    ranking: Annotated[str, typer.Option(help='With --task: "id1>id2=id3", best first.')] = "",
    all_bad: Annotated[bool, typer.Option("--all-bad", help="With --task: none is good.")] = False,
    reason: Annotated[str, typer.Option(help="Why, in your words.")] = "",
    collection: Collection = "default",
    data: Data = None,
    url: Address = None,
) -> None:
    """Judge tasks on the terminal, one after another; or, with --task, one that `next` gave."""
    with _connect(data, url, collection) as client:
        if task:
            if bool(ranking) == all_bad:
                raise InvalidArgument("--task: give either --ranking or --all-bad")
            order = [tier.split("=") for tier in ranking.split(">")] if ranking else []
            number = client.submit(task, annotator, fence, order, reason)
            typer.echo(f"judgement {number}")
            return
        from plinth.cli.judging import judge_by_hand

        done = judge_by_hand(client, annotator, lease)
    typer.echo(f"{done} judged; thank you")


@app.command()
def report(collection: Collection = "default", data: Data = None, url: Address = None) -> None:
    """Agreement, gold questions, position bias, strengths of the models."""
    with _connect(data, url, collection) as client:
        told = client.report()
    console = Console()
    console.print(f"{told.revision} judgements of {told.task_count} tasks", highlight=False)
    for name, agreement in (
        ("people", told.human_agreement),
        ("everybody", told.overall_agreement),
    ):
        alpha = f"{agreement.ordinal:.3f}" if agreement.HasField("ordinal") else "not known"
        console.print(
            f"alpha of {name}: {alpha} on {agreement.pair_count} pairs judged twice",
            highlight=False,
        )
    console.print(f"shown first, preferred: {_share(told.first_shown_wins)}", highlight=False)
    console.print(_table(("annotator", "source", "judged", "gold", "shown first"), _judges(told)))
    if told.models:
        rows = (
            (
                m.model,
                f"{m.strength:+.2f}",
                f"{m.lower:+.2f} to {m.upper:+.2f}",
                str(m.comparison_count),
            )
            for m in told.models
        )
        console.print(_table(("model", "strength", "95 %", "comparisons"), rows))


@app.command()
def export(
    out: Annotated[Path | None, typer.Argument(help="A file; default: standard output")] = None,
    shape: Annotated[str, typer.Option(help="trl or hh")] = "trl",
    collection: Collection = "default",
    data: Data = None,
    url: Address = None,
) -> None:
    """Judged pairs as JSON lines. A file appears whole or not at all."""
    with _connect(data, url, collection) as client:
        if out is None:
            for chunk in client.export(shape):
                sys.stdout.write(chunk.decode())
            return
        draft = out.with_name(f".{out.name}.part")
        try:
            with draft.open("wb") as file:
                for chunk in client.export(shape):
                    file.write(chunk)
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)


@app.command("import")
def import_pairs(
    file: Annotated[
        Path, typer.Argument(help="JSON lines of pairs; docs/data.md has the shapes", exists=True)
    ],
    source: Annotated[
        str, typer.Option(help="human, rule or model; default: as each line says")
    ] = "",
    annotator: Annotated[str, typer.Option(help="Who judged.")] = "",
    max_left_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share of contradictions to accept.")
    ] = REFUSE_ABOVE,
    collection: Collection = "default",
    data: Data = None,
    url: Address = None,
) -> None:
    """Take in pairs that were judged elsewhere. Every line is looked at before any goes in. May be
    done again, whole or after it was cut off: what is there already stays as it is."""
    from plinth.shared.api.enums import number
    from plinth.shared.preference_names import TASKS
    from plinth.v1 import preferences_pb2 as pb

    value = number(pb.JudgementSource, source, "--source")
    with _connect(data, url, collection) as client:
        planned = client.import_file(file, value, annotator, check_only=True)
        remedy = "Say by --annotator who judged these, if it is somebody else"
        setting = "--max-left-out {}"
        check_intake([_intake(planned)], max_left_out, remedy, setting=setting)
        done = client.import_file(file, value, annotator, check_only=False)
    typer.echo(f"{done.imported_count} pairs imported, {done.known_count} were there already")
    if done.contradictions:
        typer.echo(_intake(done).line())
    for one in done.contradictions[:SHOWN_CONTRADICTIONS]:
        task = TASKS.id(one.task)
        typer.echo(f"{file}:{one.line}: {one.annotator} said otherwise of task {task}")
    # Others may have judged since the look.
    check_intake([_intake(done)], max_left_out, remedy, setting=setting)


def _intake(answer: pb.ImportPairsResponse) -> Intake:
    intake = Intake("pairs", answer.imported_count + answer.known_count)
    if count := len(answer.contradictions):
        intake.leave_out("that contradict what their judge said before, which stays", count)
    return intake


def _connect(data: Path | None, url: str | None, collection: str) -> PreferenceClient:
    from plinth.cli.gateway_access import api_key, gateway_address
    from plinth.cli.preference_client import PreferenceClient
    from plinth.shared.settings import load_settings

    settings = load_settings(**({} if data is None else {"data_dir": data}))
    return PreferenceClient(gateway_address(settings, url), api_key(settings), collection)


def read_tasks(path: Path) -> list[tuple[str, pb.CreatePreferenceTaskRequest]]:
    """(place, task) of each line of a file. InvalidArgument names the line that is none."""
    from plinth.v1 import chat_pb2
    from plinth.v1 import preferences_pb2 as pb

    found = []
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: not UTF-8 ({error}); {TO_UTF8}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            prompt = value["prompt"]
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            responses = [
                {"text": one} if isinstance(one, str) else one for one in value["responses"]
            ]
            spec = pb.PreferenceTaskSpec(
                prompt=[chat_pb2.ChatMessage(**turn) for turn in turns],
                responses=[pb.PreferenceResponse(**one) for one in responses],
                wanted_judgement_count=value.get("wanted"),
                gold=[pb.ResponseTier(response_ids=tier) for tier in value.get("gold", ())],
            )
            ask = pb.CreatePreferenceTaskRequest(
                task_id=value.get("task_id", ""), task=pb.PreferenceTask(spec=spec)
            )
            found.append((f"{path}:{number}", ask))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidArgument(
                f'{path}:{number}: no task ({error}); a line is {{"prompt": …, "responses": '
                f'["…", "…"]}}, with task_id, wanted and gold if you like; see {PAGE}'
            ) from error
    return found


def _cells(task: pb.PreferenceTask) -> tuple[str, ...]:
    from plinth.shared.api.enums import word
    from plinth.shared.preference_names import TASKS
    from plinth.v1 import preferences_pb2 as pb

    spec, status = task.spec, task.status
    return (
        TASKS.id(task.name),
        word(pb.PreferenceTaskState, status.state),
        f"{status.human_judgement_count}/{spec.wanted_judgement_count}",
        str(len(spec.responses) + len(status.sampled_responses)),
        word(pb.PreferenceTaskOrigin, spec.origin),
        status.error,
    )


def _share(share: pb.Proportion) -> str:
    if not share.count:
        return "–"
    return f"{share.value:.0%} of {share.count} ({share.lower:.0%} to {share.upper:.0%})"


def _judges(told: pb.PreferenceReport) -> Iterable[tuple[str, ...]]:
    from plinth.shared.api.enums import word
    from plinth.v1 import preferences_pb2 as pb

    for one in told.annotators:
        source = word(pb.JudgementSource, one.source)
        shares = (_share(one.gold), _share(one.first_shown_wins))
        yield one.annotator, source, str(one.judgement_count), *shares


def _table(headings: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
