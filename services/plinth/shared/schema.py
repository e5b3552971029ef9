"""Which schema of keys this Redis holds, so that no Plinth starts over what it can't read.

Keys carry their schema's number, so an older Plinth would not misread a newer one's data: it would
not see them, and begin from nothing beside them. The mark says so before that.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from plinth.shared.connection import redis_errors
from plinth.shared.errors import FailedPrecondition, Unavailable
from plinth.shared.redis_keys import RESTORING_MARK, SCHEMA, SCHEMA_MARK
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.schema")

# KEYS: mark, restoring. ARGV: this code's schema. Answers {what, detail}.
_CHECK = """
local restoring = redis.call('GET', KEYS[2])
if restoring then return {'restoring', restoring} end
local mark = redis.call('GET', KEYS[1])
if mark and tonumber(mark) > tonumber(ARGV[1]) then return {'newer', mark} end
if mark ~= ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
return {'ok', ''}
"""


async def check_schema(redis: Redis) -> None:
    """Marks this Redis as this schema's. FailedPrecondition: it is a newer one's, or a backup is
    half restored here. A Redis that is away is no error: stages start without it as well."""
    try:
        with redis_errors():
            check = redis.register_script(_CHECK)
            answer: Any = await check(keys=[SCHEMA_MARK, RESTORING_MARK], args=[SCHEMA])
    except Unavailable as away:
        _log.warning("the schema of Redis was not checked", reason=away.message)
        return
    what, detail = (part.decode() for part in answer)
    if what == "newer":
        raise too_new(detail)
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
