"""`plinth models`: import, export, serve, stop, list, show, move aliases, delete. Through the
gateway of the stack that is up, or that --url names; without one, on the store alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console
from rich.markup import escape

from plinth.cli.models_on_store import Import
from plinth.cli.tables import WholeTable, show
from plinth.shared.errors import InvalidArgument, PlinthError

if TYPE_CHECKING:
    from plinth.cli.models_by_api import ModelsByApi
    from plinth.cli.models_on_store import ModelsOnStore
    from plinth.shared.settings import Settings

    Models: TypeAlias = ModelsOnStore | ModelsByApi

app = typer.Typer(
    no_args_is_help=True,
    help="Models: import, export, serve, stop, list, show, alias, delete.",
)

Data = Annotated[
    Path | None, typer.Option("--data", help="The stack's data directory (default: ./.plinth).")
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="PLINTH_URL",
        help="host:port of a gateway's gRPC API; default: --data's, and its store while none is up",
    ),
]

Dtype = Annotated[
    str, typer.Option("--dtype", help="keep, fp32, bf16 or fp16: what weights are stored in.")
]
Reference = Annotated[str, typer.Argument(help="chat, chat@3 or chat:prod")]


@contextmanager
def _opened(data: Path | None, url: str | None) -> Iterator[tuple[Settings, Models]]:
    """Settings, and where models are; an error becomes one line and exit code 1."""
    from plinth.shared.settings import load_settings

    try:
        settings = load_settings(**({"data_dir": data} if data else {}))
        if url is None and not _is_up(settings):
            from plinth.cli.models_on_store import ModelsOnStore

            yield settings, ModelsOnStore(settings)
            return
        from plinth.cli.gateway_access import api_key, gateway_address
        from plinth.cli.models_by_api import ModelsByApi
        from plinth.client import Client

        with Client(gateway_address(settings, url), api_key(settings)) as plinth:
            yield settings, ModelsByApi(plinth, settings)
    except PlinthError as error:
        Console(stderr=True).print(f"[red]{error.reason}[/]:", escape(str(error)), highlight=False)
        raise typer.Exit(1) from error


def _is_up(settings: Settings) -> bool:
    """Whether the data directory's stack answers: one that starts does not yet."""
    from plinth.cluster.stack import Stack

    state = stack.state() if (stack := Stack(settings)).running() else None
    return state is not None and state.phase == "ready"


@app.command("import")
def import_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of Hugging Face or PEFT, a GGUF file, hf:org/name[@rev], or smollm2; "
            "docs/models.md has the families that are computed."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Artifact name to publish under.")],
    revision: Annotated[
        str | None, typer.Option("--revision", help="A hub's branch, tag or commit.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="For a PEFT adapter's folder: the model it is merged into."),
    ] = None,
    dtype: Dtype = "keep",
    allow_other_base: Annotated[
        bool,
        typer.Option(
            "--allow-other-base",
            help="Merge an adapter although it says that it was trained on another model.",
        ),
    ] = False,
    data: Data = None,
    url: Url = None,
) -> None:
    """Make a model artifact from SOURCE. A hub's token is taken from HF_TOKEN."""
    from plinth.models.publish import is_adapter

    console = Console()
    with _opened(data, url) as (_, models):
        _check_base(source, base, allow_other_base, adapter=is_adapter(Path(source)))
        asked = Import(source, name, revision, base, dtype, allow_other_base)
        with console.status(f"importing {escape(source)}"):
            made = models.import_(asked)
        console.print(f"[bold]{made.ref}[/]  {made.digest}")
        console.print(f"from {escape(made.source)}", highlight=False)
        console.print(f"licence: {escape(made.license or 'not stated')}")
        for warning in made.warnings:
            console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def _check_base(source: str, base: str | None, allow_other_base: bool, *, adapter: bool) -> None:
    if base and not adapter:
        raise InvalidArgument(
            f"{source} is no folder of a PEFT adapter (with adapter_config.json), so it takes no "
            "--base",
            field="base",
        )
    if allow_other_base and not adapter:
        raise InvalidArgument(
            f"{source} is no PEFT adapter, so --allow-other-base has nothing to allow",
            field="allow_other_base",
        )


@app.command("export")
def export_command(
    ref: Reference,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    dtype: Dtype = "keep",
    merge: Annotated[
        bool, typer.Option("--merge", help="Of an adapter: merge it into its base, one model.")
    ] = False,
    with_base: Annotated[
        bool,
        typer.Option("--with-base", help="Of an adapter: its base too, into DIR/base."),
    ] = False,
    base_name: Annotated[
        str,
        typer.Option(
            "--base-name",
            metavar="PATH_OR_HUB_NAME",
            help="Of an adapter: where PEFT finds its base, if it lies somewhere already.",
        ),
    ] = "",
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Of a weight file; larger models have several.")
    ] = "5GB",
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model's folder that DIR is.")
    ] = False,
    data: Data = None,
    url: Url = None,
) -> None:
    """Make DIR a folder that transformers, PEFT and llama.cpp's converter open."""
    from plinth.models.dtypes import parse_dtype
    from plinth.models.export import ExportOptions, export_artifact
    from plinth.models.whole_folder import human

    console = Console()
    with _opened(data, url) as (settings, models), console.status(f"exporting {escape(ref)}"):
        options = ExportOptions(
            dtype=parse_dtype(dtype),
            max_shard_size=max_shard_size,
            merge=merge,
            with_base=with_base,
            base_name=base_name,
            force=force,
        )
        done = export_artifact(
            models.store, ref, folder, options, workspace=settings.data_dir / "work"
        )
    where = escape(str(done.folder))
    console.print(f"[bold]{done.ref}[/] → {where}", highlight=False, soft_wrap=True)
    console.print(f"{done.kind}, {done.dtype}, {human(done.size)}", highlight=False)
    if done.base:
        console.print(f"its base: {escape(done.base)}", highlight=False, soft_wrap=True)
    for warning in done.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


@app.command("serve")
def serve_command(
    source: Annotated[
        str, typer.Argument(help="chat, chat@3 or chat:prod; or what `import` takes.")
    ],
    shards: Annotated[
        int | None,
        typer.Option("--shards", min=1, max=1024, help="Replicas; default: as before, or 1."),
    ] = None,
    max_shards: Annotated[
        int | None,
        typer.Option(
            "--max-shards",
            min=0,
            max=1024,
            help="Up to so many while load asks for them; 0: always --shards. Default: as before.",
        ),
    ] = None,
    data: Data = None,
    url: Url = None,
) -> None:
    """Want a model served by the stack or cluster on this store; it follows within seconds."""
    with _opened(data, url) as (_, models):
        wanted = models.serve(source, shards, max_shards)
    most = f" to {wanted.max_shards}" if wanted.max_shards else ""
    one = wanted.shards == 1 and not most
    Console().print(
        f"[bold]{wanted.name}[/] is to be served from {wanted.artifact} by "
        f"{wanted.shards}{most} {'shard' if one else 'shards'}",
        highlight=False,
    )


@app.command("stop")
def stop_command(
    name: Annotated[str, typer.Argument(help="What it is served as, e.g. chat.")],
    data: Data = None,
    url: Url = None,
) -> None:
    """Serve NAME no more: its shards end within seconds, and the artifact stays on the store."""
    with _opened(data, url) as (_, models):
        models.stop(name)
    Console().print(
        f"[bold]{escape(name)}[/] is served no more; `plinth models serve {escape(name)}` brings "
        "it back",
        highlight=False,
    )


@app.command("list")
def list_command(data: Data = None, url: Url = None) -> None:
    """All versions of all models, reward models and adapters, with their families (`model_type`),
    bases and aliases."""
    titles = ("model", "kind", "family", "base", "aliases", "from", "licence", "made")
    table = WholeTable(*titles, texts=("aliases", "from", "licence"))
    with _opened(data, url) as (_, models):
        for one in models.listed():
            made = datetime.fromtimestamp(one.created_unix_ms / 1000, UTC)
            table.add_row(
                one.ref,
                one.kind,
                one.family,
                one.base,
                ", ".join(one.aliases),
                escape(one.source),
                escape(one.license),
                made.strftime("%Y-%m-%d %H:%M"),
            )
    show(Console(), table)


@app.command("show")
def show_command(ref: Reference, data: Data = None, url: Url = None) -> None:
    """One version's manifest as JSON: configuration, parents, digests, licence."""
    with _opened(data, url) as (_, models):
        shown = models.shown(ref)
    Console(soft_wrap=True).print_json(json.dumps(shown, ensure_ascii=False))


@app.command("alias")
def alias_command(
    alias: Annotated[str, typer.Argument(help="chat:prod")],
    target: Annotated[str, typer.Argument(help="The version it shall name: chat@3, or 3.")],
    data: Data = None,
    url: Url = None,
) -> None:
    """Point an alias to a version."""
    with _opened(data, url) as (_, models):
        name, separator, word = alias.partition(":")
        if not separator or not word:
            raise InvalidArgument(f"{alias!r} is no alias; write name:alias, such as chat:prod")
        ref = models.alias(name, word, f"{name}@{target}" if target.isdigit() else target)
    Console().print(f"{alias} → {ref}", highlight=False)


@app.command("delete")
def delete_command(
    ref: Annotated[str, typer.Argument(help="One version of any artifact: chat@3.")],
    data: Data = None,
    url: Url = None,
) -> None:
    """Delete one version, unless an alias, a served model or another artifact needs it."""
    with _opened(data, url) as (_, models):
        if "@" not in ref:
            raise InvalidArgument(f"{ref!r} names no version; write one, such as chat@3")
        models.delete(ref)
    Console().print(f"{escape(ref)} is deleted", highlight=False)
