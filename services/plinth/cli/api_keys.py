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
    from plinth.gateway.api_keys import KeyStore
    from plinth.gateway.key_records import KeyRecord

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
    save: Annotated[
        bool, typer.Option("--save", help="Keep it in the data directory, for the other commands.")
    ] = False,
    data: Data = None,
) -> None:
    """Makes a key and prints it: it can't be shown again."""
    from plinth.shared.identity import create_secret

    scopes = set(scope or ("inference", "tokenize"))
    file = _free_file(data) if save else None
    plain, record = _with_keys(data, lambda store: store.create(tenant, scopes, label))
    if file is not None:
        create_secret(file, plain)
    note = f"key {record.key_id} of tenant {record.tenant}: {', '.join(sorted(record.scopes))}"
    typer.echo(note, err=True)
    typer.echo(plain)


@app.command("list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for scripts.")] = False,
    data: Data = None,
) -> None:
    """All keys, revoked ones too; never the keys themselves."""

    async def listed(store: KeyStore) -> tuple[list[KeyRecord], tuple[str, ...]]:
        return await store.list(), store.unreadable()

    records, unreadable = _with_keys(data, listed)
    for key_id in unreadable:
        typer.echo(
            f"{key_id}: its record can't be read, so the key is refused; "
            f"`plinth keys revoke {key_id}` ends it for good",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps([json.loads(record.to_json()) for record in records], indent=2))
        return
    _print_table(records)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `plinth keys list` shows it.")],
    data: Data = None,
) -> None:
    """Takes a key away for good. Gateways stop taking it within seconds, or, where they can't reach
    Redis, gateway.keys_stale_s after they last did."""
    record = _with_keys(data, lambda store: store.revoke(key_id))
    typer.echo(f"key {record.key_id} of tenant {record.tenant} is revoked")


def _free_file(data: Path | None) -> Path:
    """Where the data directory's own key goes; FailedPrecondition when one lies there."""
    from plinth.shared.errors import FailedPrecondition
    from plinth.shared.settings import load_settings

    settings = load_settings(**({} if data is None else {"data_dir": data}))
    settings.ensure_secrets_dir()
    if settings.first_key_file.exists():
        raise FailedPrecondition(
            f"{settings.first_key_file} holds a key already; remove it first, or leave --save out",
            reason="KEY_FILE_EXISTS",
        )
    return settings.first_key_file


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
    from rich.text import Text

    from plinth.cli.tables import WholeTable, show

    titles = ("id", "tenant", "scopes", "label", "created", "state")
    table = WholeTable(*titles, texts=("scopes", "label"))
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
    show(Console(), table)
