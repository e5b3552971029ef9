"""`plinth keys`: API keys, through the gateway's gRPC API with a key that has the scope "admin".

Where nobody has such a key, or no gateway answers, `plinth keys create --local` makes one in the
stack's Redis: whoever reaches that is the platform's operator.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plinth.cli.gateway_access import UrlOption, client

if TYPE_CHECKING:
    from plinth.shared.settings import Settings
    from plinth.v1 import keys_pb2

_PAGE = 500

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, change, revoke.")

Data = Annotated[Path | None, typer.Option("--data", help="Data directory of the stack.")]
KeyId = Annotated[str, typer.Argument(help="As `plinth keys list` shows it.")]
Scope = Annotated[
    list[str] | None,
    typer.Option(
        help="What the key may do; repeat it. inference, tokenize, rewards, jobs, runs, "
        "artifacts, deployments, preferences, metrics or admin."
    ),
]
Role = Annotated[
    str,
    typer.Option(
        help="Scopes by a name: user (inference, tokenize; the default without --scope) or "
        "developer (all but deployments, metrics and admin)."
    ),
]


@app.command()
def create(
    scope: Scope = None,
    role: Role = "",
    tenant: Annotated[str, typer.Option(help="Whose quota it uses.")] = "default",
    label: Annotated[str, typer.Option(help="A note, to know it again.")] = "",
    save: Annotated[
        bool, typer.Option("--save", help="Keep it in the data directory, for the other commands.")
    ] = False,
    local: Annotated[
        bool,
        typer.Option("--local", help="Make it in the stack's Redis: where nobody has a key yet."),
    ] = False,
    data: Data = None,
    url: UrlOption = None,
) -> None:
    """Makes a key and prints it: it can't be shown again."""
    from plinth.shared.api import enums
    from plinth.shared.identity import create_secret
    from plinth.v1 import keys_pb2 as pb

    settings = _settings(data)
    role = role or ("" if scope else "user")
    spec = pb.KeySpec(
        tenant=tenant,
        label=label,
        scopes=scope,
        role=enums.number(pb.KeyRole, role, "role"),  # type: ignore[arg-type]
    )
    file = _free_file(settings) if save else None
    plain, key = _made_here(settings, spec) if local else _made(settings, url, spec)
    if file is not None:
        create_secret(file, plain)
    scopes = ", ".join(key.status.scopes)
    typer.echo(f"key {_id(key)} of tenant {key.spec.tenant}: {scopes}", err=True)
    typer.echo(plain)


@app.command("list")
def list_keys(
    filter_: Annotated[
        str, typer.Option("--filter", help='Like: tenant = "acme" AND state = ACTIVE')
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for scripts.")] = False,
    data: Data = None,
    url: UrlOption = None,
) -> None:
    """All keys, revoked ones too; never the keys themselves."""
    from plinth.v1 import keys_pb2 as pb

    with client(_settings(data), url) as plinth:
        keys = list(plinth.keys.list_keys(filter=filter_, page_size=_PAGE))
    for key in keys:
        if key.status.state == pb.KEY_STATE_UNREADABLE:
            typer.echo(
                f"{_id(key)}: its record can't be read, so the key is refused; "
                f"`plinth keys revoke {_id(key)}` ends it for good",
                err=True,
            )
    if as_json:
        from google.protobuf.json_format import MessageToDict

        shown = [MessageToDict(key, preserving_proto_field_name=True) for key in keys]
        typer.echo(json.dumps(shown, indent=2))
        return
    _print_table(keys)


@app.command()
def update(
    key_id: KeyId,
    scope: Scope = None,
    role: Annotated[str | None, typer.Option(help="user, developer, or none for none.")] = None,
    label: Annotated[str | None, typer.Option(help="A note, to know it again.")] = None,
    data: Data = None,
    url: UrlOption = None,
) -> None:
    """Changes what a key may do, or its note: what is given here, and nothing else."""
    from plinth.shared.api import enums
    from plinth.shared.errors import InvalidArgument
    from plinth.v1 import keys_pb2 as pb

    given: dict[str, Any] = {"scopes": scope, "label": label}
    if role is not None:
        word = "" if role == "none" else role
        given["role"] = enums.number(pb.KeyRole, word, "role")
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise InvalidArgument("nothing to change: give --scope, --role or --label")
    key = pb.Key(name=f"keys/{key_id}", spec=pb.KeySpec(**given))
    with client(_settings(data), url) as plinth:
        key = plinth.keys.update_key(key, update_mask=[f"spec.{name}" for name in given])
    typer.echo(f"key {_id(key)} of tenant {key.spec.tenant}: {', '.join(key.status.scopes)}")


@app.command()
def revoke(key_id: KeyId, data: Data = None, url: UrlOption = None) -> None:
    """Takes a key away for good. Gateways stop taking it within seconds, or, where they can't reach
    Redis, gateway.keys_stale_s after they last did."""

    with client(_settings(data), url) as plinth:
        key = plinth.keys.revoke_key(f"keys/{key_id}")
    typer.echo(f"key {_id(key)} of tenant {key.spec.tenant} is revoked")


@app.command()
def delete(key_id: KeyId, data: Data = None, url: UrlOption = None) -> None:
    """Removes the record of a revoked key."""

    with client(_settings(data), url) as plinth:
        plinth.keys.delete_key(f"keys/{key_id}")
    typer.echo(f"key {key_id} is deleted")


def _id(key: keys_pb2.Key) -> str:
    return key.name.removeprefix("keys/")


def _settings(data: Path | None) -> Settings:
    from plinth.shared.settings import load_settings

    return load_settings(**({} if data is None else {"data_dir": data}))


def _free_file(settings: Settings) -> Path:
    """Where the data directory's own key goes; FailedPrecondition when one lies there."""
    from plinth.shared.errors import FailedPrecondition

    settings.ensure_secrets_dir()
    if settings.first_key_file.exists():
        raise FailedPrecondition(
            f"{settings.first_key_file} holds a key already; remove it first, or leave --save out",
            reason="KEY_FILE_EXISTS",
        )
    return settings.first_key_file


def _made(settings: Settings, url: str | None, spec: keys_pb2.KeySpec) -> tuple[str, keys_pb2.Key]:
    from plinth.v1 import keys_pb2 as pb

    with client(settings, url) as plinth:
        made = plinth.keys.create_key(pb.Key(spec=spec))
    return made.secret, made.key


def _made_here(settings: Settings, spec: keys_pb2.KeySpec) -> tuple[str, keys_pb2.Key]:
    """Without a gateway, in Redis."""
    from plinth.gateway.keys.api_keys import KeyStore
    from plinth.gateway.keys.manager import KeyManager
    from plinth.gateway.keys.messages import message, wanted
    from plinth.shared.connection import connect

    if settings.redis_url is not None:
        address = settings.redis_url.get_secret_value()
    else:
        # A cluster's gateway image holds no Redis, and needs none.
        from plinth.cluster.embedded_redis import EmbeddedRedis

        address = EmbeddedRedis(settings.data_dir).url

    async def made() -> tuple[str, keys_pb2.Key]:
        redis = connect(address)
        try:
            manager = KeyManager(redis, KeyStore(redis))
            plain, entry = await manager.create(wanted(spec))
            return plain, message(entry)
        finally:
            await redis.aclose()

    return asyncio.run(made())


def _print_table(keys: list[keys_pb2.Key]) -> None:
    from rich.console import Console
    from rich.text import Text

    from plinth.cli.tables import WholeTable, show
    from plinth.shared.api import enums
    from plinth.v1 import keys_pb2 as pb

    titles = ("id", "tenant", "role", "scopes", "label", "created", "state")
    table = WholeTable(*titles, texts=("scopes", "label"))
    for key in keys:
        created = key.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M")
        cells = (
            _id(key),
            key.spec.tenant,
            enums.word(pb.KeyRole, key.spec.role),
            " ".join(key.status.scopes),
            key.spec.label,
            created if key.HasField("create_time") else "",
            enums.word(pb.KeyState, key.status.state),
        )
        table.add_row(*(Text(cell) for cell in cells))
    show(Console(), table)
