"""`plinth …`: one command, assembled from the parts; a part's imports wait until it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

# Command → (module that holds it, attribute, one line of help). A Typer app is a group of
# commands, a function is one.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "quickstart": ("quickstart", "quickstart", "Serve a real model, then train and serve one"),
    "align": ("align", "align", "Teach the real model to do as it is asked"),
    "up": ("stack", "up", "Bring the platform up"),
    "down": ("stack", "down", "Stop it, and clear what a crash left"),
    "status": ("stack", "status", "What runs, what is served, what waits"),
    "logs": ("stack", "logs", "Logs of one part, or of all"),
    "doctor": ("stack", "doctor", "Check this machine, and say what to do"),
    "k8s": ("k8s", "app", "A release on Kubernetes: status, scale, rollout, drain, logs, doctor"),
    "chat": ("chat", "chat", "Talk to a served model"),
    "run": ("runs", "run", "Run a pipeline file"),
    "runs": ("runs", "app", "List, watch, pause, resume, cancel runs"),
    "models": ("models", "app", "Import, export, serve, list models"),
    "preferences": ("preferences", "app", "Judge responses; reports, pairs out and in"),
    "queue": ("queue", "app", "Inspect queues, requeue dead letters"),
    "keys": ("api_keys", "app", "Create, list and revoke API keys"),
    "backup": ("backup", "backup", "Back up Redis state and artifacts to a folder or a URL"),
    "restore": ("backup", "restore", "Put a backup back, onto a platform that does not run"),
    "config": ("config", "config", "Effective settings with their sources"),
}


class LazyGroup(TyperGroup):
    """Finds a command's module when the command is asked for: `plinth status` loads no torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, summary = COMMANDS[cmd_name]
        target = getattr(importlib.import_module(f"plinth.cli.{module}"), attribute)
        if not isinstance(target, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(name=cmd_name)(target)
            target = single
        command = typer.main.get_command(target)
        command.name = cmd_name
        command.short_help = summary
        return command


_typer = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True)


@_typer.callback()
def _plinth() -> None:
    """Plinth: the base that a language model stands on."""


def app() -> None:
    """Entry point: an error of ours, or of a file, is one line on stderr and exit code 1, never a
    traceback."""
    from plinth.shared.errors import PlinthError, plain

    try:
        _typer()
    except PlinthError as error:
        typer.echo(f"plinth: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise  # no file: where it comes from is all that would tell what it means
        typer.echo(plain(f"plinth: {error.filename}: {error.strerror}"), err=True)
        sys.exit(1)
