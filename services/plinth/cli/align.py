"""`plinth align`, the job behind `make align`: the real model learns to do as it is asked.

The stack comes up with SmolLM2, `ops/pipelines/align-real.yaml` runs, and the answers before and
after stand side by side. Nobody chats on a fresh laptop, so while the run's canary waits for
requests this command asks some itself, through the gateway like anybody.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from plinth.cli.quickstart import PIPELINES, interrupt, introduce, run_to_its_end, serve_on

if TYPE_CHECKING:
    from plinth.cli.run_client import RunClient
    from plinth.cluster.stack import Stack

PIPELINE = PIPELINES / "align-real.yaml"
_LOOK_S = 1.0
_TOKENS = 32
_ASKS = (
    "Tell me about trees. Use at most 20 words.",
    "Tell me about the wind. Write everything in lower case letters.",
    "Tell me about shoes. Do not use any commas.",
    "Tell me about roads. Answer with exactly 3 bullet points and nothing else.",
    'Tell me about stars. Begin your answer with the words "In short".',
)


def align(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The stack's folder (PLINTH_DATA_DIR, by default ./.plinth)"),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--exit", help="Go on serving until Ctrl-C, or stop at the end")
    ] = True,
    pipeline: Annotated[Path, typer.Option(help="The pipeline to run", dir_okay=False)] = PIPELINE,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="path=value in the pipeline; repeatable")
    ] = None,
) -> None:
    """Teach the real model to follow instructions that can be checked, and serve it."""
    from plinth.cli.stack import bring_up, load
    from plinth.cluster.stack import Stack

    settings = load(data)
    console = Console()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    found_running = Stack(settings).running()
    stack: Stack | None = None
    good = False
    try:
        stack = bring_up(settings, console, model="default", owned=not found_running)
        model = introduce(stack, console, began)
        console.print(f"\nNow it learns to do as it is asked: {pipeline.name}", highlight=False)
        over = threading.Event()
        asking = threading.Thread(
            target=_ask_while_on_trial, args=(stack, model, over), daemon=True
        )
        asking.start()
        try:
            good = run_to_its_end(stack, console, pipeline, set_ or [])
        finally:
            over.set()
        console.print(f"[dim]{time.monotonic() - began:.0f} s after the start[/]", highlight=False)
        if keep:
            serve_on(stack, console)
    except KeyboardInterrupt:
        if stack is None:
            raise typer.Exit(130) from None
    finally:
        if stack is not None and not found_running:
            console.print("stopping …")
            stack.down()
    if not good:
        raise typer.Exit(1)


def _ask_while_on_trial(stack: Stack, model: str, over: threading.Event) -> None:
    """Requests of its own while a run of this stack has a canary out."""
    from plinth.cli.chat import open_client
    from plinth.cli.gateway_access import api_key, stack_address
    from plinth.cli.run_client import RunClient
    from plinth.shared.errors import PlinthError

    settings = stack.settings
    sampling = {"temperature": 0.7, "max_tokens": _TOKENS}
    while not over.wait(_LOOK_S):
        try:
            with RunClient(stack_address(settings), api_key(settings)) as client:
                asks = _ASKS if _on_trial(client) else ()
            for question in asks:
                messages = [{"role": "user", "content": question}]
                list(open_client(settings, None).answer(model, messages, sampling))
        except PlinthError:
            continue  # the stack is busy, or goes down; the run says what matters


def _on_trial(client: RunClient) -> bool:
    """Whether a canary waits for requests."""
    from plinth.v1 import runs_pb2 as pb

    return any(
        step.kind == pb.STEP_KIND_CANARY and step.state == pb.STEP_STATE_RUNNING
        for run in client.newest(5)
        if run.status.state == pb.RUN_STATE_RUNNING
        for step in run.status.steps
    )
