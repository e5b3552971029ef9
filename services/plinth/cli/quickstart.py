"""`plinth quickstart`, the job behind `make run`: a real model answers; a second one is trained.

1. The stack comes up, with SmolLM2 imported (once) and served.
2. It answers a question on the screen.
3. The pipeline runs: corpus → tokenizer → pre-training → tuning → evaluation → serving. What an
   earlier quickstart finished is found by its digest and not done again.
4. Both models are served until Ctrl-C.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from types import FrameType

    from plinth.cli.run_client import RunClient
    from plinth.cluster.stack import Stack

QUESTION = "What is the capital of France?"
PIPELINES = Path(__file__).parents[3] / "ops" / "pipelines"
PIPELINE = PIPELINES / "quickstart.yaml"
# The registry is a heartbeat behind the shard.
_SEEN_WITHIN_S = 30.0


def quickstart(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The stack's folder (PLINTH_DATA_DIR, by default ./.plinth)"),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train and serve a second model, or don't")
    ] = True,
    keep: Annotated[
        bool, typer.Option("--keep/--exit", help="Go on serving until Ctrl-C, or stop at the end")
    ] = True,
    pipeline: Annotated[Path, typer.Option(help="The pipeline to run", dir_okay=False)] = PIPELINE,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value in the pipeline; repeatable"),
    ] = None,
) -> None:
    """Serve a real model and talk to it; train a second one from nothing, and serve it too."""
    from plinth.cli.stack import bring_up, load
    from plinth.cluster.stack import Stack

    settings = load(data)
    console = Console()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    found_running = Stack(settings).running()
    stack: Stack | None = None
    good = True
    try:
        stack = bring_up(settings, console, model="default", owned=not found_running)
        model = introduce(stack, console, began)
        _ask(stack, console, model, began)
        if train:
            good = _train(stack, console, pipeline, set_ or [])
        if keep:
            serve_on(stack, console)
    except KeyboardInterrupt:
        if stack is None:
            raise typer.Exit(130) from None  # `Stack.up` has cleared what it had started
    finally:
        if stack is not None and not found_running:
            console.print("stopping …")
            stack.down()
            console.print(f"stopped; nothing is left running, the data stays in {_shown(stack)}")
    if not good:
        raise typer.Exit(1)


def introduce(stack: Stack, console: Console, began: float) -> str:
    """Says what is served and how to reach it; the model's name. The key is shown by where it
    lies, never itself."""
    from plinth.cli.chat import open_client
    from plinth.cli.stack import program
    from plinth.shared.errors import Unavailable

    client = open_client(stack.settings, None)
    end = time.monotonic() + _SEEN_WITHIN_S
    while not (served := client.models()):
        if time.monotonic() > end:
            raise Unavailable("the stack is up, and the gateway sees no model; `plinth status`")
        time.sleep(0.2)
    model = next((name for name in served if "smollm2" in name), served[0])
    seconds = time.monotonic() - began
    usual = stack.settings.data_dir == Path(".plinth").absolute()
    chat = f"{program()} chat" + ("" if usual else f" --data {_shown(stack)}")
    console.print(f"\n[bold green]{model}[/] is served after {seconds:.0f} s", highlight=False)
    for name, text in (("URL", f"{url(stack)}/v1"), ("curl", curl(stack, model)), ("chat", chat)):
        console.print(f"  {name:<6}", text, markup=False, highlight=False, soft_wrap=True)
    return model


def url(stack: Stack) -> str:
    state = stack.state()
    assert state is not None
    return state.rest_url(tls=stack.settings.gateway.tls.on)


def curl(stack: Stack, model: str) -> str:
    """A line to paste into a shell; greedy, so that it says what was said on the screen."""
    messages = [{"role": "user", "content": QUESTION}]
    body = json.dumps({"model": model, "messages": messages, "temperature": 0})
    parts = [f"curl {url(stack)}/v1/chat/completions"]
    if stack.settings.gateway.auth == "keys":
        parts.append(f'-H "Authorization: Bearer $(cat {_secrets(stack)}/api-key)"')
    return " ".join([*parts, "-H 'Content-Type: application/json'", f"-d {shlex.quote(body)}"])


def _ask(stack: Stack, console: Console, model: str, began: float) -> None:
    """One greedy answer, as it streams."""
    from plinth.cli.chat import open_client, printable

    console.print(f"\n> {QUESTION}", markup=False, highlight=False)
    messages = [{"role": "user", "content": QUESTION}]
    sampling = {"temperature": 0.0, "max_tokens": 64}
    asked = time.monotonic()
    for piece in open_client(stack.settings, None).answer(model, messages, sampling):
        console.print(printable(piece), end="", markup=False, highlight=False, soft_wrap=True)
    now = time.monotonic()
    console.print(
        f"\n[dim]answered in {now - asked:.1f} s, {now - began:.0f} s after the start[/]",
        highlight=False,
    )


def _train(stack: Stack, console: Console, pipeline: Path, given: list[str]) -> bool:
    """Runs the pipeline and shows it; whether it succeeded."""
    console.print(f"\nNow a model of your own, from nothing: {pipeline.name}", highlight=False)
    return run_to_its_end(stack, console, pipeline, given)


def run_to_its_end(stack: Stack, console: Console, pipeline: Path, given: list[str]) -> bool:
    """Runs a pipeline, or goes on with the run that was stopped, and shows it; whether it
    succeeded."""
    from plinth.cli.gateway_access import api_key, stack_address
    from plinth.cli.run_client import RunClient
    from plinth.cli.run_summary import summary
    from plinth.cli.run_view import follow
    from plinth.cli.runs import parse_overrides
    from plinth.cli.tables import show
    from plinth.shared.errors import NotFound
    from plinth.v1 import runs_pb2 as pb

    if not pipeline.is_file():
        raise NotFound(f"there is no pipeline at {pipeline}; name one with --pipeline")
    text = pipeline.read_text("utf-8")
    settings = stack.settings
    with RunClient(stack_address(settings), api_key(settings)) as client:
        run_id = _run_id(client, f"{pipeline.stem}-", text, given)
        client.submit(run_id, text, parse_overrides(given))
        ended = follow(console, client.watch(run_id))
        if ended.status.state != pb.RUN_STATE_SUCCEEDED:
            console.print(ended.status.error or "the run was cancelled", style="red", markup=False)
            return False
        console.print()
        show(console, summary(ended, client.artifact))
    console.print(f"\nURL     {url(stack)}/v1", highlight=False)
    return True


def _run_id(client: RunClient, name: str, text: str, given: list[str]) -> str:
    """A run that was stopped half-way goes on; else it is a new one."""
    from plinth.cli.runs import id_of
    from plinth.v1 import runs_pb2 as pb

    unended = {pb.RUN_STATE_PENDING, pb.RUN_STATE_RUNNING, pb.RUN_STATE_PAUSED}
    digest = hashlib.sha256("\0".join([text, *sorted(given)]).encode()).hexdigest()
    prefix = f"{name}{digest[:8]}-"
    for run in client.newest(200):
        if id_of(run).startswith(prefix) and run.status.state in unended:
            if run.status.state == pb.RUN_STATE_PAUSED:
                client.resume(id_of(run))
            return id_of(run)
    return f"{prefix}{time.strftime('%m%d-%H%M%S')}"


def serve_on(stack: Stack, console: Console) -> None:
    """Until Ctrl-C, or until the stack ends by another's hand."""
    from plinth.cli.chat import open_client

    served = ", ".join(open_client(stack.settings, None).models())
    console.print(f"serving {served}; Ctrl-C stops", markup=False, highlight=False)
    while stack.running():
        time.sleep(0.2)


def _secrets(stack: Stack) -> Path:
    return _relative(stack.settings.secrets_dir)


def _shown(stack: Stack) -> Path:
    return _relative(stack.settings.data_dir)


def _relative(path: Path) -> Path:
    """As it would be typed here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
