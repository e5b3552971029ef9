"""`plinth k8s …`: a release of the chart, operated. Needs a kubeconfig; what Kubernetes doesn't
know comes through the gateway, with an API key. Each command prints what does the same by kubectl.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from plinth.cli.k8s_target import ReleaseTarget, api_key
from plinth.shared.errors import InvalidArgument, PlinthError

if TYPE_CHECKING:
    from plinth.client import Client
    from plinth.cluster.kubernetes_ops.outcome import CommandOutcome

app = typer.Typer(
    help="A release on Kubernetes: status, scale, rollout, drain, logs, doctor.",
    no_args_is_help=True,
    add_completion=False,
)


_target = ReleaseTarget()


@app.callback()
def _where(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: KUBECONFIG, ~/.kube/config, or this pod's own")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig; default: current")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Default: the context's")
    ] = None,
    release: Annotated[str | None, typer.Option(help="Default: the namespace's only one")] = None,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="PLINTH_URL",
            help="host:port of the gateway's gRPC API; default: its port is forwarded. The key "
            "is PLINTH_API_KEY",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for each call")] = 15.0,
) -> None:
    """A release on Kubernetes."""
    global _target  # noqa: PLW0603  (of one command line)
    if url is not None and url.startswith(("http://", "https://")):
        raise InvalidArgument(f"{url} is the REST API; give host:port of the gRPC one")
    _target = ReleaseTarget(kubeconfig, context, namespace, release, url, timeout)


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document")] = False,
) -> None:
    """Replicas by stage, revisions, KV use, queues, runs, last errors: one screen."""
    from plinth.cli.k8s_view import status_screen
    from plinth.cli.tables import show
    from plinth.cluster.kubernetes_ops.status import gather

    with _target.found() as (api, release):
        found = gather(api, release, lambda: _target.gateway(api, release))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show(Console(), status_screen(found))
        _equivalents(found["kubectl"])


@app.command()
def scale(
    target: Annotated[str, typer.Argument(help="A stage (inference, gateway, …) or model/NAME")],
    count: Annotated[int, typer.Argument(min=0, help="Pods of the stage, or shards of the model")],
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Serve's replicas of the stage (KubeRay); default: as is"),
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Don't ask the platform whether shards have room")
    ] = False,
) -> None:
    """Give a stage so many pods, or a model so many shards.

    Pods are Kubernetes' own and last until the next helm upgrade; shards are desired state on the
    store and last until changed.
    """
    from plinth.cluster.kubernetes_ops import room, scaling

    kind, slash, name = target.partition("/")
    if slash and kind != "model":
        raise InvalidArgument(f"{target!r}: a stage, or model/NAME", field="target")
    with _target.found() as (api, release):
        if slash:
            with _target.gateway(api, release) as gateway:
                _tell(scaling.scale_model(release, gateway, name, count))
            return
        wanted = []
        if target == room.STAGE and not force:
            release.check_component(target)
            with _target.gateway(api, release) as gateway:
                wanted = list(gateway.deployments.list_deployments())
        _tell(scaling.scale_pods(api, release, target, count, replicas=replicas, wanted=wanted))


@app.command()
def rollout(
    name: Annotated[str, typer.Argument(help="The served name whose requests are shared")],
    model: Annotated[str, typer.Argument(help="The candidate: chat@8, or chat:next")],
    alias: Annotated[str, typer.Option(help="The alias that moves to it")] = "prod",
    share: Annotated[float, typer.Option(help="Of the requests, up to 0.5")] = 0.1,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Of the candidate, at most; without, any number")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="What is undecided by then is not promoted")
    ] = 3600,
    shards: Annotated[int, typer.Option(min=1, help="Of the candidate")] = 1,
    sticky: Annotated[bool, typer.Option(help="A user stays with one revision")] = False,
    errors_above: Annotated[
        float | None,
        typer.Option(help="Share of failed requests above the stable one's, less than"),
    ] = None,
    ttft_ratio: Annotated[
        float | None, typer.Option(help="95 % time to first token, times the stable one's, at most")
    ] = None,
    good_below: Annotated[
        float | None, typer.Option(help="Share of good verdicts below the stable one's, at most")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Submit and return")] = False,
) -> None:
    """Move a model's alias by canary: a share of the requests, then all of them, or none.

    The coordinator does it; Ctrl-C leaves it going on. Exit code 1: it was rolled back.
    """
    from plinth.cli.runs import new_run_id
    from plinth.cluster.kubernetes_ops import rollouts

    asked = rollouts.Rollout(
        name,
        model,
        alias,
        share,
        requests,
        seconds,
        shards,
        sticky,
        errors_above,
        ttft_ratio,
        good_below,
    )
    with _target.found() as (api, release), _target.gateway(api, release) as gateway:
        pipeline = rollouts.prepare(release, gateway, asked)
        typer.echo(pipeline)
        _equivalents(rollouts.equivalents(release))
        _rolled_out(gateway, asked.name, new_run_id(pipeline), pipeline, detach=detach)


def _rolled_out(gateway: Client, name: str, run_id: str, pipeline: str, *, detach: bool) -> None:
    from plinth.cli.k8s_view import canary_table
    from plinth.cli.run_client import RunClient
    from plinth.cli.run_view import follow
    from plinth.cluster.kubernetes_ops.rollouts import figures
    from plinth.v1 import runs_pb2 as pb

    console = Console()
    with RunClient(gateway.address, api_key()) as client:
        client.submit(run_id, pipeline, {})
        if detach:
            console.print(run_id, highlight=False)
            return
        try:
            ended = follow(console, client.watch(run_id))
        except KeyboardInterrupt:
            console.print(f"\nit goes on; `plinth runs cancel {run_id}` rolls it back")
            raise typer.Exit(130) from None
    if (status := figures(gateway.operations.get_status(), name, run_id)) is not None:
        console.print(canary_table(status))
    if ended.status.state != pb.RUN_STATE_SUCCEEDED:
        console.print(ended.status.error, style="red", markup=False)
        raise typer.Exit(1)


@app.command()
def drain(
    target: Annotated[str, typer.Argument(help="A pod, or node/NAME")],
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to empty it, and again to evict it")
    ] = 300.0,
    force: Annotated[bool, typer.Option(help="Evict it though it isn't empty in time")] = False,
) -> None:
    """Empty a pod, or a node, without a lost stream: mark, wait, evict as budgets allow."""
    from plinth.cluster.kubernetes_ops import draining

    kind, slash, name = target.partition("/")
    if slash and kind not in {"node", "pod"}:
        raise InvalidArgument(f"{target!r}: a pod's name, or node/NAME", field="target")
    with _target.found() as (api, release), contextlib.ExitStack() as stack:
        gateway: Client | None = None
        try:
            gateway = stack.enter_context(_target.gateway(api, release))
        except PlinthError as error:
            typer.echo(f"without the platform's figures, by Ray's word alone: {error.message}")
        figures = gateway.operations.get_status if gateway is not None else None
        how = draining.Drain(timeout_s=timeout, force=force, figures=figures, say=typer.echo)
        work = draining.drain_node if kind == "node" and slash else draining.drain_pod
        _tell(work(api, release, name if slash else target, how))


@app.command()
def logs(
    stages: Annotated[list[str] | None, typer.Argument(help="Stages; without any, all")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they grow")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Of each pod's end")] = 50,
    previous: Annotated[bool, typer.Option(help="Of containers before their last restart")] = False,
) -> None:
    """Logs of a stage's pods, merged by time; followed through restarts and new pods."""
    from plinth.cli.chat import printable
    from plinth.cluster.kubernetes_ops import logs as pod_logs

    if follow and previous:
        raise InvalidArgument("--previous: what has ended can't be followed")
    with _target.found() as (api, release):
        picked = pod_logs.selector(release, stages or [])
        _equivalents(pod_logs.equivalents(release, stages or [], lines, follows=follow))
        read = (
            pod_logs.follow(api, picked, lines)
            if follow
            else pod_logs.read(api, picked, lines, previous=previous)
        )
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(read):
            for line in read:
                typer.echo(f"{line.pod} | {printable(line.text)}")


@app.command()
def doctor(
    before: Annotated[
        bool, typer.Option("--before", help="Before an install, though a release is there")
    ] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="A reference that must exist, such as chat:prod")
    ] = None,
    mode: Annotated[str, typer.Option(help="ray.mode of the install: rayservice or static")] = (
        "rayservice"
    ),
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that the install wants in all")] = 0,
    cert_manager: Annotated[bool, typer.Option(help="The install wants its certificates")] = False,
) -> None:
    """Check the cluster before an install, or the release after it. Exit code 1: it won't do."""
    from plinth.cli.stack_table import doctor_screen
    from plinth.cli.tables import show
    from plinth.cluster.kubernetes_ops import doctor_after, doctor_before
    from plinth.cluster.kubernetes_ops.release import find, releases

    if mode not in {"rayservice", "static"}:
        raise InvalidArgument(f"--mode {mode!r}: rayservice or static", field="mode")
    with _target.api() as api:
        if before or not releases(api):
            name = _target.release or "plinth"
            plan = doctor_before.Plan(mode=mode, gpus=gpus, cert_manager=cert_manager, release=name)
            findings = doctor_before.examine(api, plan)
            equivalents = doctor_before.equivalents(api)
        else:
            release = find(api, _target.release)
            gateway = lambda: _target.gateway(api, release)  # noqa: E731
            findings = doctor_after.examine(api, release, gateway, model or [])
            equivalents = doctor_after.equivalents(release)
    show(Console(), doctor_screen(findings))
    _equivalents(equivalents)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def _tell(outcome: CommandOutcome) -> None:
    for line in outcome.notes:
        typer.echo(line)
    _equivalents(outcome.equivalents)


def _equivalents(commands: list[str]) -> None:
    """On stderr, so that what a script reads is what was asked for."""
    for command in commands:
        typer.echo(f"  $ {command}", err=True)
