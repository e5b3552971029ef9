"""Which deployments make sense, whatever is on the store."""

from __future__ import annotations

from plinth.internal.v1 import deployments_pb2
from plinth.shared.canary import MAX_SHARE, SUFFIX, canary_name
from plinth.shared.errors import InvalidArgument
from plinth.shared.manifest import check_name

MAX_SHARDS = 64
MAX_PER_SHARD = 1024  # CPU cores, GPUs


def checked_alone(
    deployment: deployments_pb2.DeploymentRecord,
) -> deployments_pb2.DeploymentRecord:
    """A copy with defaults filled in. InvalidArgument: it makes no sense."""
    wanted = deployments_pb2.DeploymentRecord()
    wanted.CopyFrom(deployment)
    wanted.shards = wanted.shards or 1
    check_name(wanted.name, "deployment.name")
    if wanted.shards > MAX_SHARDS:
        raise InvalidArgument(
            f"{wanted.shards} shards: 1 to {MAX_SHARDS}", field="deployment.spec.shards"
        )
    _check_most(wanted)
    for what, most in (
        ("cpus_per_shard", MAX_PER_SHARD),
        ("gpus_per_shard", MAX_PER_SHARD),
        ("traffic_share", 1),
    ):
        value = getattr(wanted, what)
        if not 0 <= value <= most:
            raise InvalidArgument(
                f"{what} {value} is out of range: 0 to {most}", field=f"deployment.spec.{what}"
            )
    _check_canary(wanted)
    return wanted


def _check_most(wanted: deployments_pb2.DeploymentRecord) -> None:
    """`max_shards` is a number above `shards`, or 0 where theirs does not change by itself."""
    if not wanted.max_shards:
        return
    if not wanted.shards <= wanted.max_shards <= MAX_SHARDS:
        raise InvalidArgument(
            f"at most {wanted.max_shards} shards of {wanted.name!r}, and at least {wanted.shards}: "
            f"max_shards is {wanted.shards} to {MAX_SHARDS}, or 0 for always {wanted.shards}",
            field="deployment.spec.max_shards",
        )
    if wanted.max_shards == wanted.shards:
        wanted.max_shards = 0


def _check_canary(wanted: deployments_pb2.DeploymentRecord) -> None:
    """A canary is named after what it is a canary of, and says its share; nothing else does."""
    if not wanted.canary_of:
        if wanted.name.endswith(SUFFIX):
            raise InvalidArgument(
                f"{wanted.name!r}: names that end in {SUFFIX} are for canaries; say canary_of",
                field="deployment.name",
            )
        if wanted.traffic_share not in (0, 1):
            raise InvalidArgument(
                f"traffic_share {wanted.traffic_share:g}: only a canary has a share of its own; "
                "a pipeline step of kind canary makes one",
                field="deployment.traffic_share",
            )
        return
    right = canary_name(wanted.canary_of)
    if wanted.name != right:
        raise InvalidArgument(
            f"a canary of {wanted.canary_of!r} is called {right!r}, not {wanted.name!r}",
            field="deployment.name",
        )
    if not 0 < wanted.traffic_share <= MAX_SHARE:
        raise InvalidArgument(
            f"a canary's traffic_share is above 0 and at most {MAX_SHARE:g}, "
            f"not {wanted.traffic_share:g}",
            field="deployment.traffic_share",
        )
