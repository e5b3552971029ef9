"""An annotator at the terminal: a prompt, its responses by letters, and what was typed."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import typer

from plinth.cli.chat import printable
from plinth.shared.errors import Aborted, InvalidArgument, NotFound
from plinth.shared.preference_names import TASKS

if TYPE_CHECKING:
    from plinth.cli.preference_client import PreferenceClient
    from plinth.v1 import preferences_pb2 as pb

HOW = """A            the best; the others are equally behind
A>B=C        an order with ties, best first
=            all equally good       x  all bad
s            never show me this     q  stop"""


def judge_by_hand(client: PreferenceClient, annotator: str, seconds: int) -> int:
    """Until there is nothing left or the annotator stops; how many were judged."""
    done = 0
    while True:
        try:
            held = client.lease(annotator, seconds)
        except NotFound as error:
            if error.reason.upper() != "NO_TASK":
                raise
            typer.secho("no task is left for you", err=True)
            return done
        letters = dict(zip(string.ascii_uppercase, held.responses, strict=False))
        _show(held, letters)
        try:
            verdict = _ask(list(letters))
            reason = "" if verdict is None else input("why (Enter: no word)> ").strip()
        except (EOFError, KeyboardInterrupt):
            client.release(held, skip=False)
            return done
        if verdict is None:
            client.release(held, skip=True)
            continue
        order = [[letters[letter].response_id for letter in tier] for tier in verdict]
        try:
            client.submit(TASKS.id(held.task), held.annotator, held.fence, order, reason[:4000])
        except Aborted as error:  # it took too long: the task may be another's by now
            typer.secho(str(error), fg="red", err=True)
        else:
            done += 1


def _show(held: pb.PreferenceLease, letters: dict[str, pb.PreferenceResponse]) -> None:
    for message in held.prompt:
        typer.secho(f"\n{message.role}", bold=True)
        typer.echo(printable(message.content))
    for letter, response in letters.items():
        typer.secho(f"\n[{letter}]", bold=True, fg="cyan")
        typer.echo(printable(response.text))
    typer.secho(f"\n{HOW}", dim=True, err=True)


def _ask(letters: list[str]) -> list[list[str]] | None:
    """Tiers of letters, empty when all are bad; None to skip. EOFError to stop."""
    while True:
        try:
            return parse_verdict(input("> "), letters)
        except InvalidArgument as error:
            typer.secho(str(error), fg="red", err=True)


def parse_verdict(text: str, letters: list[str]) -> list[list[str]] | None:
    """What an annotator typed; see HOW. EOFError for "q"."""
    answer = text.replace(" ", "").upper()
    if answer == "Q":
        raise EOFError
    if answer == "S":
        return None
    if answer == "X":
        return []
    if answer == "=":
        return [list(letters)]
    tiers = [tier.split("=") for tier in answer.split(">")]
    named = [letter for tier in tiers for letter in tier]
    if unknown := [letter for letter in named if letter not in letters]:
        raise InvalidArgument(f"{unknown[0]!r} is none of {', '.join(letters)}, =, x, s and q")
    if len(set(named)) != len(named):
        raise InvalidArgument("a response can have one place only")
    rest = [letter for letter in letters if letter not in named]
    return [*tiers, rest] if rest else tiers
