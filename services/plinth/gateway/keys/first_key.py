"""The first API key: what lets an operator in at a platform that has no key yet.

Given by the setting `gateway.first_key`, it is made known wherever it isn't. Otherwise the first
gateway of a platform without any key makes one, into <data_dir>/secrets/api-key (0600): of several
that start at once, exactly one, since Redis decides. A platform that has keys gets none; one
whose Redis lost them all takes the same first key again.
"""

from __future__ import annotations

from plinth.gateway.keys.api_keys import KeyStore
from plinth.gateway.keys.records import new_record
from plinth.shared.identity import create_secret, new_api_key
from plinth.shared.settings import Settings
from plinth.shared.telemetry import get_logger

FIRST_KEY_ID = "first"

_log = get_logger("plinth.gateway")


async def ensure_first_key(settings: Settings, store: KeyStore) -> None:
    """Idempotent, at every start. Unavailable while Redis is away; OSError and FailedPrecondition
    where the folder of secrets can't be written or is open to others."""
    record = new_record(FIRST_KEY_ID, "default", {"admin"}, "made at first start")
    if settings.gateway.first_key is not None:
        await store.add(settings.gateway.first_key.get_secret_value(), record)
        return
    settings.ensure_secrets_dir()
    path = settings.first_key_file
    if path.exists():
        if not await store.claim_first(path.read_text("ascii").strip(), record):
            _log.warning(
                "the key in this file is none of the platform, which has others: it is not taken; "
                "delete the file, and make a key by `plinth keys create --local`",
                file=str(path),
            )
        return
    # Under another name until Redis knows it: who finds the file may use the key at once. A
    # gateway that is killed between the two finds this one at its next start.
    draft = path.with_name(f".{path.name}.draft")
    if not draft.exists():
        create_secret(draft, new_api_key()[0])
    plain = draft.read_text("ascii").strip()
    if await store.claim_first(plain, record):
        create_secret(path, plain)
        _log.info("the platform's first key was made", file=str(path))
    else:
        _log.info("the platform has keys, so none was made; `plinth keys create --local` makes one")
    draft.unlink(missing_ok=True)
