"""`plinth up`, `down`, `status`, `logs`, `doctor`: the stack on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

if TYPE_CHECKING:
    from collections.abc import Callable

    from plinth.cluster.stack import Stack, StackEvent
    from plinth.internal.v1.deployments_pb2 import DeploymentRecord
    from plinth.shared.settings import Settings

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The stack's folder (PLINTH_DATA_DIR, by default ./.plinth)"),
]


def load(data: Path | None) -> Settings:
    """Settings, with --data over everything else."""
    from plinth.shared.settings import load_settings

    return load_settings(data_dir=data) if data is not None else load_settings()


def program() -> str:
    """What a shell here calls this command: its name where the PATH has it, else its file."""
    return "plinth" if shutil.which("plinth") else os.path.relpath(sys.argv[0])


def up(
    data: DataOption = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Go on in the background")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Serve this: an artifact, a GGUF file, a folder, hf:org/name or default"),
    ] = None,
) -> None:
    """Bring the platform up: Redis, Ray, the stages, the gateway, and the models served before."""
    from plinth.cluster.stack import Stack
    from plinth.shared.errors import FailedPrecondition

    settings = load(data)
    if Stack(settings).running() and not detach:
        raise FailedPrecondition(
            f"a stack runs on {settings.data_dir} already; see `plinth status`",
            reason="STACK_RUNNING",
        )
    console = Console()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    stack: Stack | None = None
    try:
        stack = bring_up(settings, console, model=model, owned=not detach)
        _greet(stack, console, time.monotonic() - began, detach)
        while not detach and stack.running():
            time.sleep(0.2)
    except KeyboardInterrupt:
        if stack is None:
            raise typer.Exit(130) from None  # `Stack.up` has cleared what it had started
    if not detach:
        console.print("stopping …")
        began = time.monotonic()
        stack.down()
        console.print(f"stopped after {time.monotonic() - began:.1f} s; nothing is left running")


def bring_up(
    settings: Settings, console: Console, *, model: str | None = None, owned: bool = False
) -> Stack:
    """Starts the stack with a live table (plain lines where there is no terminal), and `model`
    with it: the import runs while the stages start. Used by `plinth quickstart` as well."""
    from plinth.cli.stack_table import UpTable
    from plinth.cluster.stack import Stack

    table = UpTable()
    began = time.monotonic()
    importing = _Import(settings, model) if model else None

    def show(event: StackEvent) -> None:
        line = table.update(event)
        if line and not console.is_terminal:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    if console.is_terminal:
        with Live(table, console=console, refresh_per_second=8):
            stack = Stack.up(settings, show, owned=owned)
            if importing:
                await_model(stack, importing.result(), show, began)
    else:
        stack = Stack.up(settings, show, owned=owned)
        if importing:
            await_model(stack, importing.result(), show, began)
    return stack


def await_model(
    stack: Stack,
    wanted: DeploymentRecord,
    show: Callable[[StackEvent], None],
    began: float,
    timeout_s: float = 180.0,
) -> None:
    """Returns when the model is served; Unavailable, with its log, when it can't be.

    began: on time.monotonic()'s clock, what the events' seconds count from.
    """
    from plinth.cluster.stack import StackEvent
    from plinth.shared.errors import Unavailable

    name = f"inference-{wanted.name}"
    end = time.monotonic() + timeout_s
    told = ""
    while time.monotonic() < end:
        state = stack.state()
        part = state.components.get(name) if state is not None else None
        if part is not None and part.state != told:
            told = part.state
            show(StackEvent(name, part, time.monotonic() - began))
        if part is not None and part.state in {"ready", "failed"}:
            break
        time.sleep(0.1)
    if told != "ready":
        detail = f": {part.detail}" if part is not None and part.detail else ""
        raise Unavailable(
            f"{wanted.artifact} is not served{detail}; see {stack.layout.log(name)}",
            reason="MODEL_NOT_SERVED",
        )


class _Import:
    """`serve_model` on a thread of its own."""

    def __init__(self, settings: Settings, model: str) -> None:
        self._settings, self._model = settings, model
        self._deployment: DeploymentRecord | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="import-model")
        self._thread.start()

    def _run(self) -> None:
        from plinth.cluster.serve_model import serve_model

        try:
            self._deployment = serve_model(self._settings, self._model)
        except Exception as error:  # noqa: BLE001  (raised again where the result is asked for)
            self._error = error

    def result(self) -> DeploymentRecord:
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._deployment is not None
        return self._deployment


def down(data: DataOption = None) -> None:
    """Stop the platform, and clear what a crash left behind."""
    from plinth.cluster.stack import Stack

    settings = load(data)
    stack = Stack(settings)
    ran = stack.running()
    began = time.monotonic()
    cleared = stack.down()
    seconds = time.monotonic() - began
    if ran:
        typer.echo(f"stopped after {seconds:.1f} s; the data stays in {settings.data_dir}")
    elif cleared:
        typer.echo(f"no stack ran; cleared {cleared} processes that a crash had left")
    else:
        typer.echo(f"no stack runs on {settings.data_dir}")


def status(
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document")] = False,
) -> None:
    """What runs, what is served, what waits: one screen."""
    from plinth.cli.stack_table import status_screen
    from plinth.cli.tables import show
    from plinth.cluster.status import gather

    found = asyncio.run(gather(load(data)))
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
    else:
        show(Console(), status_screen(found))


def logs(
    component: Annotated[str | None, typer.Argument(help="One part; without it, all")] = None,
    data: DataOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they grow")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="From the end")] = 50,
) -> None:
    """Logs of one part, or of all."""
    from plinth.cluster.layout import Layout
    from plinth.cluster.logs import follow_logs, log_files, tail

    settings = load(data)
    files = log_files(Layout.of(settings), component)
    prefix = len(files) > 1
    for name, path in files.items():
        for line in tail(path, lines):
            typer.echo(f"{name:>12} | {line}" if prefix else line)
    if follow:
        try:
            for name, line in follow_logs(Layout.of(settings), component):
                typer.echo(f"{name:>12} | {line}" if prefix else line)
        except KeyboardInterrupt:
            return


def doctor(data: DataOption = None) -> None:
    """Check this machine, and say what to do. Exit code 1 when a stack can't run here."""
    from plinth.cli.stack_table import doctor_screen
    from plinth.cli.tables import show
    from plinth.cluster.doctor import examine

    findings = examine(load(data))
    show(Console(), doctor_screen(findings))
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def _greet(stack: Stack, console: Console, seconds: float, detached: bool) -> None:
    state = stack.state()
    assert state is not None
    url = state.rest_url(tls=stack.settings.gateway.tls.on)
    console.print(f"\n[bold green]up[/] after {seconds:.0f} s", highlight=False)
    console.print(f"  REST    {url}/v1", highlight=False)
    console.print(f"  gRPC    {state.gateway_host}:{state.gateway_grpc_port}", highlight=False)
    key = stack.settings.first_key_file
    if key.exists():
        console.print(f"  key     {key}", highlight=False, soft_wrap=True)
    ours = program()
    console.print(f"  try     {ours} chat    {ours} status    {ours} logs -f", highlight=False)
    stop = f"{ours} down" if detached else "Ctrl-C"
    console.print(f"  stop    {stop}", highlight=False)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
