"""Every Redis key that Plinth uses, in one place.

A key is ``plinth:<schema>:<family>:{<tag>}…``. The schema number changes when the meaning of a
family changes, so that two versions of Plinth never read each other's data as their own. The
part in braces names what belongs together: keys that one script touches share it, but for the
leader's lease, which a canary's scripts read too. Plinth speaks to one Redis server
(`connection.py`), neither to a Redis Cluster nor through Sentinel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plinth.shared.errors import InvalidArgument

SCHEMA = 1
PREFIX = f"plinth:{SCHEMA}"

# The only keys without a schema number, since they are about the whole (`schema.py`): the newest
# schema that was ever written here, the release whose this is, the backup that is being restored
# here, and that one is made.
SCHEMA_MARK = "plinth:{schema}"
RELEASE_MARK = "plinth:{schema}:release"
RESTORING_MARK = "plinth:{schema}:restoring"
BACKUP_MARK = "plinth:{schema}:backup"

# Every family, and whether a backup keeps it. What it does not keep is about processes that live
# now, and comes again within seconds of their start.
FAMILIES: Final[Mapping[str, bool]] = {
    "replica": False,
    "replicas": False,
    "lease": False,
    "fence": True,
    "run": True,
    "runs": True,
    "runs-active": True,
    "run-events": True,
    "run-number": True,
    "job": True,
    "jobs": True,
    "job-changes": False,  # news for watchers; they look for themselves as well
    "api-keys": True,
    "key-creation": False,  # for who sends a request again within the hour
    "quota": False,  # at most a minute's use
    "rewards-done": False,  # news for those who wait; they look for themselves as well
    "canary": True,
    "queues": True,
    "queue": True,
    "preference-collections": True,
    "preferences": True,
}

_KEY = re.compile(r"plinth:(?P<schema>[0-9]{1,9}):(?P<family>[a-z-]+)(:.*)?", re.DOTALL)


def parse_key(key: str) -> tuple[int, str] | None:
    """(schema, family) of a key of Plinth's, of any schema; None for anybody else's."""
    match = _KEY.fullmatch(key)
    return (int(match["schema"]), match["family"]) if match else None


# The name of the coordinator's leader lease: who holds it carries out the runs.
LEADER_LEASE: Final = "runs"

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,127}")


def check_part(value: str, what: str) -> str:
    """`value` if it can stand in a key (no braces, colons, blanks); InvalidArgument if not."""
    if not _PART.fullmatch(value):
        raise InvalidArgument(
            f"{what} {value[:140]!r}: use 1 to 128 of A-Z a-z 0-9 . _ @ / -, "
            "starting with a letter or a digit",
            field=what,
        )
    return value


def replica(stage: str, replica_id: str) -> str:
    """Hash with a TTL: what one replica announces."""
    return f"{PREFIX}:replica:{{{check_part(stage, 'stage')}}}:{check_part(replica_id, 'replica')}"


def replicas(stage: str) -> str:
    """Sorted set: ids of a stage's replicas by the time (ms, server clock) they lapse."""
    return f"{PREFIX}:replicas:{{{check_part(stage, 'stage')}}}"


def lease(name: str) -> str:
    """String with a TTL: who leads (the coordinator's leader lease)."""
    return f"{PREFIX}:lease:{{{check_part(name, 'lease')}}}"


def fence(name: str) -> str:
    """Counter: fencing number of a leader lease."""
    return f"{PREFIX}:fence:{{{check_part(name, 'lease')}}}"


# One hash tag for all runs and the coordinator's lease (`lease("runs")`, `fence("runs")`): a run
# changes in one script with the check of the leader's fence.
def run(run_id: str) -> str:
    """Hash: one run's record, revision, and what its owner wants of it."""
    return f"{PREFIX}:run:{{runs}}:{check_part(run_id, 'run')}"


def run_log(run_id: str) -> str:
    """Stream, bounded, its ids the run's revisions: each state of one run and of its steps."""
    return f"{run(run_id)}:log"


def runs() -> str:
    """Sorted set: run ids by time of submission."""
    return f"{PREFIX}:runs:{{runs}}"


def active_runs() -> str:
    """Set: ids of the runs that have not ended."""
    return f"{PREFIX}:runs-active:{{runs}}"


def run_number() -> str:
    """Counter: the number of the run that was submitted last."""
    return f"{PREFIX}:run-number:{{runs}}"


def run_events() -> str:
    """Stream, bounded: ids of runs in the order in which they changed."""
    return f"{PREFIX}:run-events:{{runs}}"


def job(job_id: str) -> str:
    """Hash: state of one training job."""
    return f"{PREFIX}:job:{{{check_part(job_id, 'job')}}}"


def jobs() -> str:
    """Sorted set: job ids by time of submission."""
    return f"{PREFIX}:jobs"


def job_changes() -> str:
    """Stream, bounded: ids of jobs in the order in which they changed."""
    return f"{PREFIX}:job-changes"


def job_events(job_id: str) -> str:
    """Stream, bounded: each state of one job."""
    return f"{PREFIX}:job:{{{check_part(job_id, 'job')}}}:events"


def api_keys() -> str:
    """Hash: sha256 of an API key → its record."""
    return f"{PREFIX}:api-keys"


def key_creation(key_id: str) -> str:
    """Hash with a TTL: what a repeated request for a key's creation is answered from."""
    return f"{PREFIX}:key-creation:{check_part(key_id, 'key_id')}"


def quota(tenant: str) -> str:
    """Hash with a TTL: what a tenant's limits hold, and what each gateway has leased of them."""
    return f"{PREFIX}:quota:{{{check_part(tenant, 'tenant')}}}:ledger"


def rewards_done(name: str) -> str:
    """Stream, bounded, with a TTL: ids of reward tasks that ended, for who waits for them."""
    return f"{PREFIX}:rewards-done:{check_part(name, 'announce')}"


def canary(name: str, part: str = "") -> str:
    """Hash: the canary of one served name. With `part`: what is kept of one of its requests."""
    key = f"{PREFIX}:canary:{{{check_part(name, 'name')}}}"
    return f"{key}:{check_part(part, 'part')}" if part else key


def queues() -> str:
    """Set: names of the queues that ever held an item."""
    return f"{PREFIX}:queues"


@dataclass(frozen=True)
class QueueKeys:
    """The keys of one queue; all share the hash tag ``{name}``."""

    name: str

    def __post_init__(self) -> None:
        check_part(self.name, "queue")

    def _key(self, part: str) -> str:
        return f"{PREFIX}:queue:{{{self.name}}}:{part}"

    @property
    def stream(self) -> str:
        """Stream with the consumer group ``workers``: ids that wait to be claimed."""
        return self._key("stream")

    @property
    def items(self) -> str:
        """Hash: id → JSON (state, attempts, fence, deadline, entry, last reason)."""
        return self._key("items")

    @property
    def payloads(self) -> str:
        """Hash: id → payload bytes."""
        return self._key("payloads")

    @property
    def leases(self) -> str:
        """Sorted set: claimed ids by the time (ms, server clock) at which the lease lapses."""
        return self._key("leases")

    @property
    def delayed(self) -> str:
        """Sorted set: ids that wait for a retry by the time (ms) at which it is due."""
        return self._key("delayed")

    @property
    def dead(self) -> str:
        """Sorted set: dead letters by the time (ms) of their death."""
        return self._key("dead")

    @property
    def cancelled(self) -> str:
        """Sorted set: cancelled ids by the time (ms) until which they are remembered."""
        return self._key("cancelled")

    @property
    def fence(self) -> str:
        """Counter: the last fencing number given out."""
        return self._key("fence")

    def result(self, item_id: str) -> str:
        """Hash with a TTL: the result of one completed item and the fence that stored it."""
        return self._key(f"result:{check_part(item_id, 'id')}")


def preference_collections() -> str:
    """Set: names of the collections of preference tasks."""
    return f"{PREFIX}:preference-collections"


@dataclass(frozen=True)
class PreferenceKeys:
    """The keys of one collection of preference tasks; all share a hash tag."""

    collection: str

    def __post_init__(self) -> None:
        check_part(self.collection, "collection")

    def _key(self, part: str) -> str:
        return f"{PREFIX}:preferences:{{preferences/{self.collection}}}:{part}"

    @property
    def tasks(self) -> str:
        """Sorted set: ids of all tasks by their number."""
        return self._key("tasks")

    @property
    def open(self) -> str:
        """Sorted set: ids that an annotator can be given, by their number."""
        return self._key("open")

    @property
    def leases(self) -> str:
        """Sorted set: ids that are held by the time (ms, server clock) the lease runs out."""
        return self._key("leases")

    @property
    def held(self) -> str:
        """Hash: annotator → number of tasks held."""
        return self._key("held")

    @property
    def judgements(self) -> str:
        """List that only grows: judgements in order; a snapshot is its length."""
        return self._key("judgements")

    @property
    def counters(self) -> str:
        """Hash: the last fence, the last task's number, bytes kept."""
        return self._key("counters")

    @property
    def snapshots(self) -> str:
        """Hash: a step's job id → the snapshot that it took."""
        return self._key("snapshots")

    def task(self, task_id: str) -> str:
        """Hash: one task, its state and holder, and who has judged it."""
        return self._key(f"task:{check_part(task_id, 'task_id')}")

    def nonce(self, annotator: str) -> str:
        """String with a TTL: an annotator's last request for a lease, and what it gave."""
        return self._key(f"nonce:{check_part(annotator, 'annotator')}")
