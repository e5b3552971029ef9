"""`plinth queue`: what waits, what died and why, and how to let it run again; through the gateway's
gRPC API, with a key that has the scope "admin"."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from plinth.cli.gateway_access import UrlOption, client
from plinth.cli.tables import WholeTable, show

if TYPE_CHECKING:
    from plinth.client import Client

app = typer.Typer(no_args_is_help=True, help="Queues: what waits, what died, and why.")

Data = Annotated[Path | None, typer.Option("--data", help="Data directory of the stack.")]
Name = Annotated[str, typer.Argument(help="The queue's name, as `plinth queue list` shows it.")]
ItemId = Annotated[str, typer.Argument(help="The item's id.")]


@app.command("list")
def list_queues(data: Data = None, url: UrlOption = None) -> None:
    """All queues with what they hold."""
    table = WholeTable("queue", "waiting", "claimed", "delayed", "dead")
    with _client(data, url) as plinth:
        for queue in plinth.operations.list_queues():
            counts = (queue.waiting, queue.claimed, queue.delayed, queue.dead)
            table.add_row(_id(queue.name), *map(str, counts))
    show(Console(), table)


@app.command("inspect")
def inspect_item(queue: Name, item: ItemId, data: Data = None, url: UrlOption = None) -> None:
    """What became of one item."""
    from plinth.shared.api import enums
    from plinth.v1 import operations_pb2 as pb

    with _client(data, url) as plinth:
        found = plinth.operations.get_queue_item(f"queues/{queue}/items/{item}")
    state = enums.word(pb.QueueItemState, found.state)
    Console().print(f"{item}: {state}, {found.attempts} attempts", found.reason, markup=False)


@app.command("dead")
def dead_letters(
    queue: Annotated[
        str | None, typer.Argument(help="The queue's name; without one, those of all queues.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Of each queue.")] = 20,
    data: Data = None,
    url: UrlOption = None,
) -> None:
    """Dead letters with their reasons, newest first."""
    table = WholeTable("queue", "id", "attempts", "bytes", "reason", texts=("reason",))
    with _client(data, url) as plinth:
        names = [queue] if queue else [_id(one.name) for one in plinth.operations.list_queues()]
        for name in names:
            letters = plinth.operations.list_dead_letters(f"queues/{name}", page_size=limit)
            for letter in islice(letters, limit):
                id = letter.name.split("/", 3)[-1]
                cells = (name, id, str(letter.attempts), str(letter.payload_size_bytes))
                table.add_row(*map(Text, (*cells, letter.reason)))
    show(Console(), table)


@app.command("requeue")
def requeue(queue: Name, item: ItemId, data: Data = None, url: UrlOption = None) -> None:
    """Lets a dead letter run again, with fresh attempts and no deadline."""
    with _client(data, url) as plinth:
        plinth.operations.requeue_dead_letter(f"queues/{queue}/deadLetters/{item}")
    Console().print(f"{item} waits again", markup=False)


@app.command("discard")
def discard(queue: Name, item: ItemId, data: Data = None, url: UrlOption = None) -> None:
    """Removes a dead letter for good."""
    with _client(data, url) as plinth:
        plinth.operations.delete_dead_letter(f"queues/{queue}/deadLetters/{item}")
    Console().print(f"{item} is discarded", markup=False)


def _client(data: Path | None, url: str | None) -> Client:
    from plinth.shared.settings import load_settings

    return client(load_settings(**({} if data is None else {"data_dir": data})), url)


def _id(name: str) -> str:
    return name.removeprefix("queues/")
