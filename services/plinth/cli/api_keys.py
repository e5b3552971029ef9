"""`plinth keys`: API keys of the gateway. Whoever reaches the stack's Redis is its operator."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from plinth.gateway.api_keys import KeyRecord, KeyStore

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")

T = TypeVar("T")
Data = Annotated[Path | None, typer.Option("--data", help="Data directory of the stack.")]


@app.command()
def create(
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What the key may do; repeat it. inference, tokenize, rewards, jobs, runs, "
            "artifacts, deployments, preferences, metrics or admin; default: inference, tokenize."
        ),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose quota it uses.")] = "default",
    label: Annotated[str, typer.Option(help="A note, to know it again.")] = "",
    data: Data = None,
) -> None:
    """Makes a key and prints it: it can't be shown again."""
    scopes = set(scope or ("inference", "tokenize"))
    plain, record = _with_keys(data, lambda store: store.create(tenant, scopes, label))
    note = f"key {record.key_id} of tenant {record.tenant}: {', '.join(sorted(record.scopes))}"
    typer.echo(note, err=True)
    typer.echo(plain)


@app.command("list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for scripts.")] = False,
    data: Data = None,
) -> None:
    """All keys, revoked ones too; never the keys themselves."""
    records = _with_keys(data, lambda store: store.list())
    if as_json:
        typer.echo(json.dumps([json.loads(record.to_json()) for record in records], indent=2))
        return
    _print_table(records)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `plinth keys list` shows it.")],
    data: Data = None,
) -> None:
    """Takes a key away for good; gateways stop taking it within seconds."""
    record = _with_keys(data, lambda store: store.revoke(key_id))
    typer.echo(f"key {record.key_id} of tenant {record.tenant} is revoked")


def _with_keys(data: Path | None, work: Callable[[KeyStore], Awaitable[T]]) -> T:
    """Runs `work` on the keys of the stack in `data`."""
    from plinth.gateway.api_keys import KeyStore
    from plinth.shared.connection import connect
    from plinth.shared.settings import load_settings

    settings = load_settings(**({} if data is None else {"data_dir": data}))
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
    else:
        # A cluster's gateway image holds no Redis, and needs none.
        from plinth.cluster.embedded_redis import EmbeddedRedis

        url = EmbeddedRedis(settings.data_dir).url

    async def run() -> T:
        redis = connect(url)
        try:
            return await work(KeyStore(redis))
        finally:
            await redis.aclose()

    return asyncio.run(run())


def _print_table(records: list[KeyRecord]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("id", "tenant", "scopes", "label", "created", "state"):
        table.add_column(heading, overflow="fold")
    for record in records:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created_unix_ms / 1000))
        cells = (
            record.key_id,
            record.tenant,
            " ".join(sorted(record.scopes)),
            record.label,
            created,
            "revoked" if record.revoked else "valid",
        )
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)
