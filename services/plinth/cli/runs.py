"""`plinth run FILE` and `plinth runs …`: pipelines on the platform."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from plinth.cli.corpus_option import corpus_overrides, mapping
from plinth.cli.tables import WholeTable, show
from plinth.shared.errors import InvalidArgument

if TYPE_CHECKING:
    from plinth.cli.run_client import RunClient
    from plinth.v1 import runs_pb2 as pb

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The stack's folder (PLINTH_DATA_DIR, by default ./.plinth)"),
]
AddressOption = Annotated[
    str | None,
    typer.Option(envvar="PLINTH_URL", help="host:port of a gateway's gRPC API; default: --data's"),
]
RunArgument = Annotated[str | None, typer.Argument(help="A run's id; without it, the newest")]

app = typer.Typer(help="Runs of pipelines.", no_args_is_help=True, add_completion=False)


def run(
    file: Annotated[Path, typer.Argument(help="A pipeline file", exists=True, dir_okay=False)],
    corpus: Annotated[
        Path | None,
        typer.Option(help="Your folder of text; what comes of it has its name", file_okay=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value, such as steps.pretrain.max_seconds=60; repeatable"),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="For idempotency; default: a new one")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Submit and return")] = False,
    data: DataOption = None,
    url: AddressOption = None,
) -> None:
    """Run a pipeline file and show its steps; Ctrl-C leaves it running."""
    text = file.read_text("utf-8")
    overrides = parse_overrides(set_ or [])
    if corpus is not None:
        overrides = corpus_overrides(_read(text), corpus, overrides)
    console = Console()
    with connect(data, url) as client:
        submitted = client.submit(
            run_id or new_run_id(text, overrides.get("name")), text, overrides
        )
        tell_if_known(console, submitted)
        if detach:
            console.print(id_of(submitted), highlight=False)
            return
        _watch(client, console, id_of(submitted))


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option(min=1)] = 20,
    data: DataOption = None,
    url: AddressOption = None,
) -> None:
    """Runs, newest first."""
    from plinth.cli.run_view import state_word
    from plinth.v1 import runs_pb2 as pb

    done = {pb.STEP_STATE_SUCCEEDED, pb.STEP_STATE_REUSED}
    table = WholeTable("run", "state", "steps", "submitted", "")
    with connect(data, url) as client:
        for one in client.newest(limit):
            status = one.status
            finished = sum(step.state in done for step in status.steps)
            steps = f"{finished}/{len(status.steps)}"
            table.add_row(id_of(one), state_word(one), steps, _created(one), escape(status.error))
    show(Console(), table)


@app.command()
def watch(run_id: RunArgument = None, data: DataOption = None, url: AddressOption = None) -> None:
    """Show a run until it ends."""
    with connect(data, url) as client:
        _watch(client, Console(), run_id or _newest(client))


@app.command()
def pause(run_id: RunArgument = None, data: DataOption = None, url: AddressOption = None) -> None:
    """No new step starts; the running one goes on."""
    with connect(data, url) as client:
        _say(client.pause(run_id or _newest(client)))


@app.command()
def resume(run_id: RunArgument = None, data: DataOption = None, url: AddressOption = None) -> None:
    """Go on with a paused run."""
    with connect(data, url) as client:
        _say(client.resume(run_id or _newest(client)))


@app.command()
def cancel(
    run_id: Annotated[str, typer.Argument(help="A run's id")],
    data: DataOption = None,
    url: AddressOption = None,
) -> None:
    """Stop the running step and end the run; what is finished stays and is reused."""
    with connect(data, url) as client:
        _say(client.cancel(run_id))


@app.command()
def delete(
    run_id: Annotated[str, typer.Argument(help="A run's id")],
    data: DataOption = None,
    url: AddressOption = None,
) -> None:
    """Forget a run that has ended; what its steps published stays."""
    with connect(data, url) as client:
        client.delete(run_id)
    typer.echo(f"{run_id} deleted")


@app.command()
def fork(
    source: Annotated[str, typer.Argument(help="The run whose finished steps are taken over")],
    from_step: Annotated[
        str, typer.Option("--from", help="The first step to do anew; so is whatever needs it")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value, for the steps that are done anew; repeatable"),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="For idempotency; default: a new one")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Submit and return")] = False,
    data: DataOption = None,
    url: AddressOption = None,
) -> None:
    """Start a run from another one's finished steps, with other settings for the rest."""
    overrides = parse_overrides(set_ or [])
    console = Console()
    with connect(data, url) as client:
        new = run_id or new_run_id(client.get(source).spec.pipeline_yaml, overrides.get("name"))
        forked = client.fork(new, source, from_step, overrides)
        tell_if_known(console, forked)
        if detach:
            console.print(id_of(forked), highlight=False)
            return
        _watch(client, console, id_of(forked))


def tell_if_known(console: Console, run: pb.Run) -> None:
    """Says so where nothing was started: the run of that id has ended before."""
    from plinth.cli.run_view import state_word

    if run.status.HasField("end_time"):
        console.print(
            f"{id_of(run)} was submitted before, at {_created(run)}, and has {state_word(run)}: "
            "nothing is run; leave --run-id out to run it again",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def connect(data: Path | None, url: str | None) -> RunClient:
    """A client of the gateway that `url` names, or of the stack in the data directory."""
    from plinth.cli.gateway_access import api_key, gateway_address
    from plinth.cli.run_client import RunClient
    from plinth.shared.settings import load_settings

    settings = load_settings(**({} if data is None else {"data_dir": data}))
    return RunClient(gateway_address(settings, url), api_key(settings))


def parse_overrides(given: list[str]) -> dict[str, str]:
    """["a.b=c"] → {"a.b": "c"}."""
    overrides = {}
    for item in given:
        path, equals, value = item.partition("=")
        if not equals or not path:
            raise InvalidArgument(f"--set {item!r}: give path=value, such as name=mine")
        overrides[path.strip()] = value
    return overrides


def new_run_id(text: str, name: str | None = None) -> str:
    """ "<pipeline>-<time>-<chance>"; a name that is none is told by the coordinator. `name` stands
    instead of the one in the text."""
    name = str(name or _read(text).get("name") or "run")[:22]  # a run's id has 40 characters
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-") or "run"
    return f"{plain}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _read(text: str) -> dict[str, Any]:
    try:
        return mapping(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidArgument(f"the pipeline is no YAML: {error}") from error


def _watch(client: RunClient, console: Console, run_id: str) -> None:
    from plinth.cli.run_summary import summary
    from plinth.cli.run_view import follow
    from plinth.v1 import runs_pb2 as pb

    try:
        ended = follow(console, client.watch(run_id))
    except KeyboardInterrupt:
        console.print(f"\nthe run goes on; `plinth runs watch {run_id}` shows it again")
        raise typer.Exit(130) from None
    if ended.status.state != pb.RUN_STATE_SUCCEEDED:
        console.print(ended.status.error, style="red", markup=False)
        raise typer.Exit(1)
    console.print()
    show(console, summary(ended, client.artifact))


def _newest(client: RunClient) -> str:
    runs = client.newest(1)
    if not runs:
        raise InvalidArgument("there is no run yet; `plinth run FILE` starts one")
    return id_of(runs[0])


def _say(run: pb.Run) -> None:
    from plinth.cli.run_view import state_word

    typer.echo(f"{id_of(run)} {state_word(run)}")


def id_of(run: pb.Run) -> str:
    """Of its name, "runs/<id>"."""
    return run.name.removeprefix("runs/")


def _created(run: pb.Run) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run.create_time.seconds))
