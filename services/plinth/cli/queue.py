"""`plinth queue`: what waits, what died and why, and how to let it run again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from plinth.cli.tables import WholeTable, show
from plinth.shared.errors import NotFound, PlinthError

if TYPE_CHECKING:
    from redis.asyncio import Redis

app = typer.Typer(no_args_is_help=True, help="Queues: what waits, what died, and why.")

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="The queue's name, as `plinth queue list` shows it.")]
ItemId = Annotated[str, typer.Argument(help="The item's id.")]


def _with_redis(work: Callable[[Redis], Awaitable[T]]) -> T:
    """Runs `work` on the stack's Redis; an error becomes one line and exit code 1."""
    from plinth.cluster.embedded_redis import EmbeddedRedis
    from plinth.shared.connection import connect
    from plinth.shared.settings import load_settings

    async def run() -> T:
        settings = load_settings()
        secret = settings.redis_url
        url = secret.get_secret_value() if secret else EmbeddedRedis(settings.data_dir).url
        client = connect(url)
        try:
            return await work(client)
        finally:
            await client.aclose()

    try:
        return asyncio.run(run())
    except PlinthError as error:
        Console(stderr=True).print(f"[red]{error.reason}[/]:", escape(str(error)), highlight=False)
        raise typer.Exit(1) from error


@app.command("list")
def list_queues() -> None:
    """All queues with what they hold."""
    from plinth.shared.queue import Queue, QueueInfo, queue_names

    async def work(redis: Redis) -> list[tuple[str, QueueInfo]]:
        return [(name, await Queue(redis, name).inspect()) for name in await queue_names(redis)]

    table = WholeTable("queue", "waiting", "claimed", "delayed", "dead")
    for name, info in _with_redis(work):
        table.add_row(name, *map(str, (info.length, info.pending, info.delayed, info.dead)))
    show(Console(), table)


@app.command("inspect")
def inspect_item(queue: Name, item: ItemId) -> None:
    """What became of one item."""
    from plinth.shared.queue import ItemState, Queue

    async def work(redis: Redis) -> ItemState:
        if (found := await Queue(redis, queue).find(item)) is None:
            raise NotFound(f"queue {queue} knows no item {item!r}", reason="ITEM_NOT_FOUND")
        return found

    found = _with_redis(work)
    Console().print(f"{item}: {found.state}, {found.attempts} attempts", found.reason, markup=False)


@app.command("dead")
def dead_letters(
    queue: Annotated[
        str | None, typer.Argument(help="The queue's name; without one, those of all queues.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Of each queue.")] = 20,
) -> None:
    """Dead letters with their reasons, newest first."""
    from plinth.shared.queue import DeadLetter, Queue, queue_names

    async def work(redis: Redis) -> list[tuple[str, DeadLetter]]:
        names = [queue] if queue else await queue_names(redis)
        return [
            (name, letter)
            for name in names
            for letter in await Queue(redis, name).dead_letters(limit)
        ]

    table = WholeTable("queue", "id", "attempts", "bytes", "reason", texts=("reason",))
    for name, letter in _with_redis(work):
        size = str(len(letter.payload))
        table.add_row(name, letter.id, str(letter.attempts), size, escape(letter.reason))
    show(Console(), table)


@app.command("requeue")
def requeue(queue: Name, item: ItemId) -> None:
    """Lets a dead letter run again, with fresh attempts and no deadline."""
    from plinth.shared.queue import Queue

    async def work(redis: Redis) -> None:
        if not await Queue(redis, queue).requeue(item):
            raise NotFound(f"{item!r} is no dead letter of queue {queue}", reason="ITEM_NOT_FOUND")

    _with_redis(work)
    Console().print(f"{item} waits again", markup=False)
