"""`plinth backup DEST`, `plinth restore SOURCE`: everything, to a folder or a URL and back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from plinth.cli.stack import DataOption, load

if TYPE_CHECKING:
    from plinth.cluster.backup.archive import Tell
    from plinth.cluster.backup.pruning import Pruned


class Half(StrEnum):
    """What of a backup is restored alone."""

    redis = "redis"
    store = "store"


def backup(
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A folder, or s3://bucket/path, gs://…, file://…")
    ],
    data: DataOption = None,
    max_pause: Annotated[
        float,
        typer.Option(min=0.1, max=600, help="Seconds that writers of Redis may have to wait."),
    ] = 20.0,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Read it back, then delete older backups, so that so many are there."
        ),
    ] = None,
) -> None:
    """Back up Redis state, artifacts and the checkpoints of open jobs; the platform goes on.

    DEST may hold earlier backups: what they have is not copied again. Secrets are not in it.
    """
    from plinth.cluster.backup.making import SECRETS, back_up

    console = Console()
    began = time.monotonic()
    settings = load(data)
    with _progress(console) as tell:
        made = back_up(settings, destination, tell, limit_s=max_pause, keep=keep)
    console.print(
        f"[bold]{made.backup.id}[/] in {escape(made.url)} after {time.monotonic() - began:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"  {made.keys} keys of Redis (its writers waited {made.paused_s:.2f} s), "
        f"{made.artifacts} artifacts, checkpoints of {made.checkpoints} open jobs",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"  {decimal(made.copied_bytes)} were new there", highlight=False)
    if made.pruned is not None:
        _tell_pruned(console, made.pruned, made.url)
    console.print(f"  {SECRETS}", highlight=False, soft_wrap=True)


def _tell_pruned(console: Console, pruned: Pruned, url: str) -> None:
    console.print(
        f"  read back, and whole; {pruned.kept} backups are kept, {len(pruned.backups)} older "
        f"ones deleted, and {pruned.contents} contents that none of the others names "
        f"({decimal(pruned.bytes)})",
        highlight=False,
        soft_wrap=True,
    )
    if pruned.broken_off:
        console.print(
            f"  {len(pruned.broken_off)} that were never finished are deleted, too", highlight=False
        )
    for id in pruned.waits_for:
        console.print(
            f"  contents stay until the next time, since another backup or restore runs here "
            f"({id}); if it died, delete {escape(url)}/running/{id}.json",
            highlight=False,
            soft_wrap=True,
        )


def restore(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What was given to `plinth backup`.")
    ],
    data: DataOption = None,
    backup_id: Annotated[
        str | None, typer.Option("--backup", help="Which one; without it, the newest.")
    ] = None,
    only: Annotated[Half | None, typer.Option(help="This half alone.")] = None,
    replace_redis: Annotated[
        bool, typer.Option("--replace-redis", help="Give up the state that Redis holds.")
    ] = False,
    merge_store: Annotated[
        bool, typer.Option("--merge-store", help="Keep what the store holds, and add to it.")
    ] = False,
    check_only: Annotated[
        bool, typer.Option("--check", help="Read all of it, compare digests, change nothing.")
    ] = False,
) -> None:
    """Put a backup back. The platform must not run, and its Redis and store must be empty."""
    from plinth.cluster.backup.restoring import check, restore

    console = Console()
    settings = load(data)
    with _progress(console) as tell:
        if check_only:
            done = check(source, tell, backup_id=backup_id)
        else:
            done = restore(
                settings,
                source,
                tell,
                backup_id=backup_id,
                only=None if only is None else only.value,
                replace_redis=replace_redis,
                merge_store=merge_store,
            )
    what = "is whole" if check_only else "is restored"
    moved = "read" if check_only else "copied"
    console.print(
        f"[bold]{done.backup.id}[/] {what}: {done.redis_records} records of Redis, "
        f"{done.artifacts} artifacts, {done.checkpoints} checkpoints; "
        f"{decimal(done.copied_bytes)} {moved}",
        highlight=False,
        soft_wrap=True,
    )
    if not check_only:
        console.print(
            "  Keys that were valid at the backup are valid again, also those that were revoked "
            "since: `plinth keys list`.",
            soft_wrap=True,
        )
        if not settings.first_key_file.exists():
            console.print(
                "  A platform that has keys gets no first one: once it is up, `plinth keys create "
                "--local --scope admin --save` makes one for this data directory.",
                highlight=False,
                soft_wrap=True,
            )
        console.print("  Start the platform with `plinth up`.", highlight=False)


@contextmanager
def _progress(console: Console) -> Iterator[Tell]:
    """One bar per phase; plain lines where there is no terminal. What Redis refuses in a way that
    nobody foresaw is an error of ours."""
    import redis

    from plinth.shared.errors import FailedPrecondition

    bars: dict[str, int] = {}
    with Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:

        def tell(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=None, told="")
                if not console.is_terminal:
                    console.print(f"{what} …", highlight=False)
            of = what == "artifacts"
            told = f"{decimal(done)} of {decimal(total)}" if of else str(done or "")
            progress.update(bars[what], completed=done, total=total or None, told=told)  # type: ignore[arg-type]  # (a TaskID is an int)

        try:
            yield tell
        except redis.ResponseError as error:
            raise FailedPrecondition(
                f"Redis refuses a command: {error}. Plinth wants Redis 7.2 or newer, and all of "
                "its commands but the administrator's",
                reason="REDIS_REFUSED",
            ) from error
