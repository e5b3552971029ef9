"""`plinth k8s rollout`: a model's alias moved by canary, as a run of one step.

The coordinator's step "canary" does all of it, and goes on when this command ends: the candidate's
shards come up beside the served revision's, gateways give them their share, the gate decides by
errors, time to first token and verdicts, and the alias moves, or nothing does. Here stands what is
asked of it, and whether the cluster has room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from plinth.client import Client
from plinth.cluster.kubernetes_ops.gateway_client import PAGE
from plinth.cluster.kubernetes_ops.outcome import kubectl
from plinth.cluster.kubernetes_ops.release import Release
from plinth.cluster.kubernetes_ops.room import check_room, most_shards, served_name, shards_now
from plinth.shared.artifact_messages import kind_of, reference_of
from plinth.shared.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from plinth.shared.kinds import a_kind
from plinth.v1 import artifacts_pb2, operations_pb2

STEP = "canary"


@dataclass(frozen=True)
class Rollout:
    """What is asked for. name: the served name. model: the candidate, "chat@8" or "chat:next".
    requests, seconds: at most so many of the candidate, and so long. The rest, and `requests`: None
    is the step's own default."""

    name: str
    model: str
    alias: str = "prod"
    share: float = 0.1
    requests: int | None = None
    seconds: float = 3600.0
    shards: int = 1
    sticky: bool = False
    error_share_above_at_most: float | None = None
    ttft_p95_ratio_at_most: float | None = None
    good_share_below_at_most: float | None = None

    def pipeline(self, artifact: str) -> str:
        """The run, as YAML; the candidate is named by its version."""
        require = {
            key: value
            for key in (
                "error_share_above_at_most",
                "ttft_p95_ratio_at_most",
                "good_share_below_at_most",
            )
            if (value := getattr(self, key)) is not None
        }
        step: dict[str, Any] = {
            "kind": "canary",
            "model": artifact,
            "name": self.name,
            "alias": self.alias,
            "share": self.share,
            "seconds": self.seconds,
            "shards": self.shards,
            "sticky": self.sticky,
        }
        if self.requests is not None:
            step["requests"] = self.requests
        if require:
            step["require"] = require
        plan = {"name": f"rollout-{self.name}"[:40], "steps": {STEP: step}}
        return yaml.safe_dump(plan, sort_keys=False)


def prepare(release: Release, gateway: Client, asked: Rollout) -> str:
    """The pipeline to submit. Refuses what is sure to fail: NotFound (no such model, version or
    alias; not served), AlreadyExists (it is served), FailedPrecondition (no room for its shards,
    another canary)."""
    artifact = gateway.artifacts.get_artifact(f"artifacts/{asked.model}")
    if artifact.kind != artifacts_pb2.ARTIFACT_KIND_MODEL:
        raise InvalidArgument(
            f"{asked.model} is {a_kind(kind_of(artifact))}; a model is rolled out", field="model"
        )
    candidate = reference_of(artifact)
    deployments = {
        served_name(one): one for one in gateway.deployments.list_deployments(page_size=PAGE)
    }
    served = {n: one for n, one in deployments.items() if not one.status.HasField("canary")}
    if asked.name not in served:
        known = ", ".join(sorted(served)) or "none"
        raise NotFound(
            f"nothing is served as {asked.name!r}, so it has no requests to share; served are: "
            f"{known}. `plinth models serve {candidate}` serves a first revision",
            reason="NOT_SERVED",
            field="name",
        )
    if served[asked.name].spec.artifact == candidate and asked.alias in artifact.aliases:
        raise AlreadyExists(f"{asked.name} is {candidate} already, and so is :{asked.alias}")
    for one in deployments.values():
        if one.status.canary.deployment == served[asked.name].name:
            raise FailedPrecondition(
                f"{asked.name} has a canary already: {one.spec.artifact}, of "
                f"{one.status.canary.step}; wait for its "
                "end, or `plinth runs cancel` that run",
                reason="CANARY_TAKEN",
            )
    # While the candidate takes over, it has as many shards as the revision that goes.
    more = max(asked.shards, shards_now(served[asked.name]))
    check_room(deployments.values(), release, pods=most_shards(release), more=more)
    return asked.pipeline(candidate)


def figures(
    status: operations_pb2.GetStatusResponse, name: str, run_id: str
) -> operations_pb2.CanaryStatus | None:
    """What the gate of this run saw, kept for days, also of one that was rolled back."""
    for canary in status.canaries:
        if canary.model == name and canary.step.startswith(f"{run_id}."):
            return canary
    return None


def equivalents(release: Release) -> list[str]:
    """Two commands, beside the pipeline in a file."""
    port = f"svc/{release.fullname}-gateway"
    return [
        kubectl(release.namespace, "port-forward", port, "8081:grpc"),
        "plinth run rollout.yaml --url 127.0.0.1:8081   # the pipeline above, in a file",
    ]
