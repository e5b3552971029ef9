"""`plinth models`: import, export, serve, stop, list, show, move aliases. Works on the store; needs
no stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from plinth.cli.tables import WholeTable, show
from plinth.shared.errors import InvalidArgument, PlinthError

if TYPE_CHECKING:
    from plinth.shared.settings import Settings
    from plinth.shared.store import ArtifactRecord, ArtifactStore

app = typer.Typer(
    no_args_is_help=True,
    help="Models: import, export, serve, stop, list, show, alias.",
)

Data = Annotated[
    Path | None, typer.Option("--data", help="The stack's data directory (default: ./.plinth).")
]
_KINDS = ("model", "reward", "adapter")

Dtype = Annotated[
    str, typer.Option("--dtype", help="keep, fp32, bf16 or fp16: what weights are stored in.")
]
Reference = Annotated[str, typer.Argument(help="chat, chat@3 or chat:prod")]


@contextmanager
def _opened(data: Path | None) -> Iterator[tuple[Settings, ArtifactStore]]:
    """Settings and store; an error becomes one line and exit code 1."""
    from plinth.shared.settings import load_settings
    from plinth.shared.store import ArtifactStore

    try:
        settings = load_settings(**({"data_dir": data} if data else {}))
        cache = settings.data_dir / "cache"
        yield settings, ArtifactStore(settings.store(), cache_dir=cache)
    except PlinthError as error:
        Console(stderr=True).print(f"[red]{error.reason}[/]:", escape(str(error)), highlight=False)
        raise typer.Exit(1) from error


@app.command("import")
def import_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of Hugging Face or PEFT, a GGUF file, hf:org/name[@rev], or smollm2; "
            "of the architectures of Llama and GPT-2."
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
) -> None:
    """Make a model artifact from SOURCE. A hub's token is taken from HF_TOKEN."""
    from plinth.models.publish import import_adapter, import_model, is_adapter

    console = Console()
    with _opened(data) as (settings, store):
        work = settings.data_dir / "work"
        _check_base(source, base, allow_other_base, adapter=is_adapter(Path(source)))
        with console.status(f"importing {escape(source)}"):
            record = (
                import_adapter(
                    store,
                    Path(source),
                    name,
                    base=base,
                    workspace=work,
                    dtype=dtype,
                    allow_other_base=allow_other_base,
                )
                if base
                else import_model(
                    store, source, name, workspace=work, revision=revision, dtype=dtype
                )
            )
        extra = record.manifest["extra"]
        console.print(f"[bold]{record.ref}[/]  {extra.get('weights_digest', record.digest)}")
        console.print(f"from {escape(str(extra.get('source', source)))}", highlight=False)
        console.print(f"licence: {escape(record.manifest['license'] or 'not stated')}")
        for warning in extra.get("warnings", ()):
            console.print(f"[yellow]warning:[/] {escape(str(warning))}", highlight=False)


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
) -> None:
    """Make DIR a folder that transformers, PEFT and llama.cpp's converter open."""
    from plinth.models.dtypes import parse_dtype
    from plinth.models.export import ExportOptions, export_artifact
    from plinth.models.whole_folder import human

    console = Console()
    with _opened(data) as (settings, store), console.status(f"exporting {escape(ref)}"):
        options = ExportOptions(
            dtype=parse_dtype(dtype),
            max_shard_size=max_shard_size,
            merge=merge,
            with_base=with_base,
            base_name=base_name,
            force=force,
        )
        done = export_artifact(store, ref, folder, options, workspace=settings.data_dir / "work")
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
) -> None:
    """Want a model served by the stack or cluster on this store; it follows within seconds."""
    from plinth.cluster.serve_model import serve_model

    with _opened(data) as (settings, _):
        wanted = serve_model(settings, source, shards=shards, max_shards=max_shards)
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
) -> None:
    """Serve NAME no more: its shards end within seconds, and the artifact stays on the store."""
    from plinth.shared.errors import NotFound
    from plinth.shared.records import DeploymentRecords

    with _opened(data) as (_, store):
        records = DeploymentRecords(store)
        try:
            records.delete(name)
        except NotFound as unknown:
            served = ", ".join(sorted(one.name for one in records.list())) or "nothing"
            raise NotFound(
                f"{name!r} is not served; served is {served}", reason=unknown.reason
            ) from unknown
    Console().print(
        f"[bold]{escape(name)}[/] is served no more; `plinth models serve {escape(name)}` brings "
        "it back",
        highlight=False,
    )


@app.command("list")
def list_command(data: Data = None) -> None:
    """All versions of all models, reward models and adapters, with their bases and aliases."""
    titles = ("model", "kind", "base", "aliases", "from", "licence", "made")
    table = WholeTable(*titles, texts=("aliases", "from", "licence"))
    with _opened(data) as (_, store):
        records = store.list()
        kinds = {record.ref: record.kind for record in records}
        for record in records:
            if record.kind not in _KINDS:
                continue
            made = datetime.fromtimestamp(record.created_unix_ms / 1000, UTC)
            table.add_row(
                record.ref,
                record.kind,
                next((ref for ref in record.parents if kinds.get(ref) == "model"), ""),
                ", ".join(_aliases(store, record)),
                escape(str(record.manifest["extra"].get("source") or ", ".join(record.parents))),
                escape(record.manifest["license"] or ""),
                made.strftime("%Y-%m-%d %H:%M"),
            )
    show(Console(), table)


@app.command("show")
def show_command(ref: Reference, data: Data = None) -> None:
    """One version's manifest as JSON: configuration, parents, digests, licence."""
    with _opened(data) as (_, store):
        record = store.get(ref)
        shown = {
            "ref": record.ref,
            "uri": record.uri,
            "aliases": _aliases(store, record),
            **record.manifest,
        }
    Console(soft_wrap=True).print_json(json.dumps(shown, ensure_ascii=False))


@app.command("alias")
def alias_command(
    alias: Annotated[str, typer.Argument(help="chat:prod")],
    target: Annotated[str, typer.Argument(help="The version it shall name: chat@3, or 3.")],
    data: Data = None,
) -> None:
    """Point an alias to a version."""
    with _opened(data) as (_, store):
        name, separator, word = alias.partition(":")
        if not separator or not word:
            raise InvalidArgument(f"{alias!r} is no alias; write name:alias, such as chat:prod")
        record = store.get(f"{name}@{target}" if target.isdigit() else target)
        if record.name != name:
            raise InvalidArgument(f"{alias} can only name a version of {name}, not {record.ref}")
        store.set_alias(name, word, record.version)
    Console().print(f"{alias} → {record.ref}", highlight=False)


def _aliases(store: ArtifactStore, record: ArtifactRecord) -> list[str]:
    aliases = store.aliases(record.name)
    return [alias for alias, version in aliases.items() if version == record.version]
