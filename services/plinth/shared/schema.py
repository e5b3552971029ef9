"""Which schema of keys this Redis holds, and whose: no Plinth starts over what it can't read, or
over another release's.

Keys carry their schema's number, so an older Plinth would not misread a newer one's data: it would
not see them, and begin from nothing beside them. They carry no release: two on one database would
serve each other's queues, models and API keys. The marks say so before that.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from plinth.shared.connection import redis_errors
from plinth.shared.errors import FailedPrecondition, Unavailable
from plinth.shared.redis_keys import RELEASE_MARK, RESTORING_MARK, SCHEMA, SCHEMA_MARK
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.schema")

# KEYS: schema, restoring, release. ARGV: this code's schema, this process's release or "". Answers
# {what, detail}. Nothing is written where it refuses.
_CHECK = """
local restoring = redis.call('GET', KEYS[2])
if restoring then return {'restoring', restoring} end
local mark = redis.call('GET', KEYS[1])
if mark and tonumber(mark) > tonumber(ARGV[1]) then return {'newer', mark} end
local owner = redis.call('GET', KEYS[3])
if owner and owner ~= ARGV[2] then return {'owned', owner} end
if ARGV[2] ~= '' and not owner then redis.call('SET', KEYS[3], ARGV[2]) end
if mark ~= ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
return {'ok', ''}
"""


async def claim_redis(redis: Redis, release: str | None) -> None:
    """Marks this database as this schema's and, if the process is of one, as the release's.

    FailedPrecondition: it is a newer schema's or another release's, or a backup is half restored
    here. A Redis that is away is no error: stages start without it as well."""
    try:
        with redis_errors():
            check = redis.register_script(_CHECK)
            answer: Any = await check(
                keys=[SCHEMA_MARK, RESTORING_MARK, RELEASE_MARK], args=[SCHEMA, release or ""]
            )
    except Unavailable as away:
        _log.warning("the schema and the owner of Redis were not checked", reason=away.message)
        return
    what, detail = (part.decode() for part in answer)
    if what == "newer":
        raise too_new(detail)
    if what == "owned":
        database = redis.connection_pool.connection_kwargs.get("db") or 0
        raise of_another(detail, release, database)
    if what == "restoring":
        raise FailedPrecondition(
            f"backup {detail} is being restored into this Redis, or a restore broke off: let it "
            "end, or give the same `plinth restore` again",
            reason="RESTORE_UNFINISHED",
        )


def too_new(schema: object) -> FailedPrecondition:
    """The refusal of a downgrade."""
    return FailedPrecondition(
        f"this Redis holds data of key schema {schema}, and this Plinth knows schema {SCHEMA} at "
        "most: it was written by a newer Plinth. Install that version again; or, to go back for "
        "good, restore a backup from before the upgrade (`plinth restore`) into an empty Redis",
        reason="SCHEMA_TOO_NEW",
        field="redis_url",
    )


def of_another(owner: str, release: str | None, database: int) -> FailedPrecondition:
    """The refusal of another release's database."""
    return FailedPrecondition(
        f"this Redis database is the release {owner}'s, and this process is "
        f"{release or 'of no release'}: they would serve each other's queues, models and API keys. "
        "Give this one another database or a Redis of its own (redis.database and redis.external "
        f"of the chart). If {owner} is uninstalled and what it left is to be taken over, give it "
        f"free first: redis-cli -n {database} DEL '{RELEASE_MARK}'",
        reason="REDIS_OF_ANOTHER_RELEASE",
        field="redis_url",
    )
