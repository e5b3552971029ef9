"""KeyService at a real front door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from redis.asyncio import Redis

from gateway_stages import Stack, running_stack
from patience import PATIENCE_S
from plinth.gateway.keys.api_keys import KeyStore
from plinth.gateway.keys.manager import KeyManager
from plinth.gateway.keys.messages import wanted
from plinth.shared import redis_keys
from plinth.shared.errors import PlinthError, ResourceExhausted, Unauthenticated
from plinth.shared.identity import ROLES, Principal, hash_api_key
from plinth.shared.rpc.status import from_rpc_error
from plinth.v1 import keys_pb2 as pb
from plinth.v1 import keys_pb2_grpc

Call = Callable[[str, Any], Any]


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: Redis) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


@pytest.fixture
async def call(stack: Stack) -> AsyncIterator[Call]:
    """call("GetKey", request, key=None): as an administrator, or with that key."""
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = keys_pb2_grpc.KeyServiceStub(channel)

        async def one(method: str, request: Any, key: str = "") -> Any:
            metadata = (("authorization", f"Bearer {key or stack.key}"),)
            try:
                return await getattr(stub, method)(request, metadata=metadata, timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error

        yield one


async def refused(answer: Any) -> PlinthError:
    with pytest.raises(PlinthError) as caught:
        await answer
    return caught.value


def asked(**spec: Any) -> pb.CreateKeyRequest:
    return pb.CreateKeyRequest(key=pb.Key(spec=pb.KeySpec(**{"tenant": "acme", **spec})))


async def test_a_keys_life(call: Call, redis_client: Redis) -> None:
    made = await call("CreateKey", asked(role=pb.KEY_ROLE_DEVELOPER, scopes=["metrics"], label="l"))
    key = made.key
    assert key.status.state == pb.KEY_STATE_ACTIVE
    assert set(key.status.scopes) == ROLES["developer"] | {"metrics"}
    assert (key.spec.tenant, list(key.spec.scopes), key.spec.label) == ("acme", ["metrics"], "l")
    assert (key.owner.key_id, key.owner.tenant) == ("first", "default")
    assert key.create_time.seconds and not key.status.HasField("revoke_time")
    assert (await call("GetKey", pb.GetKeyRequest(name=key.name))).key == key
    kept = await redis_client.hgetall(redis_keys.api_keys())
    assert made.secret.encode() not in b"".join(kept.values())
    principal = await KeyStore(redis_client).principal(made.secret)
    assert principal.scopes == ROLES["developer"] | {"metrics"}

    mask = FieldMask(paths=["spec.role", "spec.label"])
    change = pb.Key(name=key.name, etag=key.etag, spec=pb.KeySpec(label="m", tenant="ignored"))
    changed = (await call("UpdateKey", pb.UpdateKeyRequest(key=change, update_mask=mask))).key
    assert (changed.spec.label, list(changed.status.scopes)) == ("m", ["metrics"])
    assert changed.spec.tenant == "acme" and changed.etag != key.etag
    assert (await KeyStore(redis_client).principal(made.secret)).scopes == {"metrics"}
    error = await refused(call("UpdateKey", pb.UpdateKeyRequest(key=change, update_mask=mask)))
    assert (error.code, error.metadata["etag"]) == ("ABORTED", changed.etag)

    name = pb.DeleteKeyRequest(name=key.name)
    assert (await refused(call("DeleteKey", name))).reason == "KEY_NOT_REVOKED"
    gone = (await call("RevokeKey", pb.RevokeKeyRequest(name=key.name))).key
    assert gone.status.state == pb.KEY_STATE_REVOKED and gone.status.HasField("revoke_time")
    assert (await call("RevokeKey", pb.RevokeKeyRequest(name=key.name))).key == gone
    with pytest.raises(Unauthenticated):
        await KeyStore(redis_client).principal(made.secret)
    change.etag = ""
    error = await refused(call("UpdateKey", pb.UpdateKeyRequest(key=change, update_mask=mask)))
    assert error.reason == "KEY_REVOKED"
    name.etag = key.etag
    assert (await refused(call("DeleteKey", name))).code == "ABORTED"
    name.etag = gone.etag
    await call("DeleteKey", name)
    assert (await refused(call("GetKey", pb.GetKeyRequest(name=key.name)))).code == "NOT_FOUND"
    assert (await refused(call("DeleteKey", name))).reason == "KEY_NOT_FOUND"


async def test_a_request_that_comes_again_makes_no_second_key(
    call: Call, redis_client: Redis
) -> None:
    request = asked(scopes=["jobs"])
    request.request_id = "once"
    made = await asyncio.gather(*(call("CreateKey", request) for _ in range(5)))
    assert len({(one.secret, one.key.name) for one in made}) == 1
    assert await redis_client.hlen(redis_keys.api_keys()) == 2
    (secret, key), first = (made[0].secret, made[0].key), KeyStore(redis_client)
    assert (await first.principal(secret)).scopes == {"jobs"}

    other = asked(scopes=["jobs", "admin"])
    other.request_id = "once"
    error = await refused(call("CreateKey", other))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "REQUEST_ID_USED")
    assert error.metadata == {"key": key.name}
    # Another caller's request is another one, whatever its id.
    admin = (await call("CreateKey", asked(scopes=["admin"]))).secret
    assert (await call("CreateKey", request, admin)).secret != secret
    # After an hour nothing is left from which the secret could be made again.
    held = [name async for name in redis_client.scan_iter(f"{redis_keys.PREFIX}:key-creation:*")]
    assert len(held) == 2
    for name in held:
        assert 0 < await redis_client.ttl(name) <= 3600
        await redis_client.delete(name)
    error = await refused(call("CreateKey", request))
    assert (error.code, "more than an hour" in error.message) == ("ALREADY_EXISTS", True)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (asked(), "SCOPE_UNKNOWN"),
        (asked(scopes=["root"]), "SCOPE_UNKNOWN"),
        (asked(scopes=["jobs"], tenant="a b"), "INVALID_ARGUMENT"),
        (asked(scopes=["jobs"], tenant="system"), "INVALID_ARGUMENT"),
        (asked(scopes=["jobs"], label="a\nb"), "INVALID_ARGUMENT"),
        (asked(scopes=["jobs"], label="x" * 201), "INVALID_ARGUMENT"),
        (asked(role=77), "ENUM_VALUE"),
        (
            pb.CreateKeyRequest(key=pb.Key(spec=pb.KeySpec(scopes=["jobs"])), request_id="a b"),
            "REQUEST_ID",
        ),
    ],
)
async def test_what_can_be_no_key_is_not_made(
    call: Call, redis_client: Redis, request_: pb.CreateKeyRequest, reason: str
) -> None:
    error = await refused(call("CreateKey", request_))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", reason)
    assert await redis_client.hlen(redis_keys.api_keys()) == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("spec.tenant", "UPDATE_MASK"),
        ("status", "UPDATE_MASK"),
        ("nothing", "UPDATE_MASK"),
        ("spec.scopes", "SCOPE_UNKNOWN"),
        ("spec", "SCOPE_UNKNOWN"),  # without any
    ],
)
async def test_what_no_update_may_set(call: Call, path: str, reason: str) -> None:
    key = (await call("CreateKey", asked(scopes=["jobs"]))).key
    request = pb.UpdateKeyRequest(key=pb.Key(name=key.name), update_mask=FieldMask(paths=[path]))
    assert (await refused(call("UpdateKey", request))).reason == reason
    assert (await call("GetKey", pb.GetKeyRequest(name=key.name))).key == key


async def test_two_who_change_a_key_do_not_undo_each_other(call: Call, stack: Stack) -> None:
    """Above all, a change that was decided on before does not bring a revoked key back."""
    for _ in range(5):
        key = (await call("CreateKey", asked(scopes=["jobs"]))).key
        change = pb.Key(name=key.name, spec=pb.KeySpec(label="changed"))
        await asyncio.gather(
            *(call("UpdateKey", pb.UpdateKeyRequest(key=change)) for _ in range(3)),
            call("RevokeKey", pb.RevokeKeyRequest(name=key.name)),
            return_exceptions=True,
        )
        now = (await call("GetKey", pb.GetKeyRequest(name=key.name))).key
        assert now.status.state == pb.KEY_STATE_REVOKED


async def test_a_record_that_cant_be_read_is_listed_and_can_be_ended(
    call: Call, redis_client: Redis
) -> None:
    await redis_client.hset(redis_keys.api_keys(), hash_api_key("a"), b"{")
    listed = await call("ListKeys", pb.ListKeysRequest(filter="state = UNREADABLE"))
    (key,) = listed.keys
    assert key.status.state == pb.KEY_STATE_UNREADABLE
    change = pb.UpdateKeyRequest(key=pb.Key(name=key.name, spec=pb.KeySpec(label="x")))
    assert (await refused(call("UpdateKey", change))).reason == "KEY_RECORD_UNREADABLE"
    gone = (await call("RevokeKey", pb.RevokeKeyRequest(name=key.name))).key
    assert gone.status.state == pb.KEY_STATE_REVOKED
    await call("DeleteKey", pb.DeleteKeyRequest(name=gone.name))
    assert await redis_client.hlen(redis_keys.api_keys()) == 1


async def test_what_a_newer_version_wrote_stays(call: Call, redis_client: Redis) -> None:
    newer = {"key_id": "n", "tenant": "acme", "scopes": ["jobs", "embed"], "role": "embedder"}
    newer |= {"label": "", "created_unix_ms": 5, "revoked": False, "expires": 7}
    digest = hash_api_key("of a newer version")
    await redis_client.hset(redis_keys.api_keys(), digest, json.dumps(newer))
    change = pb.Key(name="keys/n", spec=pb.KeySpec(label="note"))
    error = await refused(call("UpdateKey", pb.UpdateKeyRequest(key=change)))
    assert error.reason == "SCOPE_UNKNOWN"  # told, rather than taken away
    change.spec.scopes.append("jobs")
    key = (await call("UpdateKey", pb.UpdateKeyRequest(key=change))).key
    assert (key.spec.label, list(key.status.scopes)) == ("note", ["jobs"])
    kept = json.loads(await redis_client.hget(redis_keys.api_keys(), digest))
    assert (kept["role"], kept["expires"], kept["scopes"]) == ("embedder", 7, ["jobs"])


async def test_the_first_key_stays_on_record(call: Call) -> None:
    """Its secret lies in a file, by which a gateway would make it again."""
    admin = (await call("CreateKey", asked(scopes=["admin"]))).secret
    name = "keys/first"
    await call("RevokeKey", pb.RevokeKeyRequest(name=name), admin)
    error = await refused(call("DeleteKey", pb.DeleteKeyRequest(name=name), admin))
    assert error.reason == "FIRST_KEY"


async def test_pages_hold_every_key_once_while_others_come_and_go(
    call: Call, redis_client: Redis
) -> None:
    """5,000 of them, some in the same millisecond."""
    record = {"tenant": "acme", "scopes": ["jobs"], "label": "", "revoked": False}
    kept = {
        hash_api_key(f"k{at}"): json.dumps(
            {**record, "key_id": f"k{at}", "created_unix_ms": 1000 + at // 7}
        )
        for at in range(5000)
    }
    await redis_client.hset(redis_keys.api_keys(), mapping=kept)
    request = pb.ListKeysRequest(filter='tenant = "acme" AND scopes:jobs', page_size=900)
    seen: list[str] = []
    while True:
        page = await call("ListKeys", request)
        seen += [key.name for key in page.keys]
        if not page.next_page_token:
            break
        await call("CreateKey", asked(scopes=["admin"]))
        early = {**record, "key_id": f"early-{len(seen)}", "created_unix_ms": 1}
        await redis_client.hset(
            redis_keys.api_keys(), hash_api_key(early["key_id"]), json.dumps(early)
        )
        request.page_token = page.next_page_token
    assert len(seen) == len(set(seen))
    assert {f"keys/k{at}" for at in range(5000)} <= set(seen)
    request.filter = ""
    assert (await refused(call("ListKeys", request))).reason == "PAGE_TOKEN"


async def test_filters_say_enums_as_those_of_other_services_do(call: Call) -> None:
    key = (await call("CreateKey", asked(role=pb.KEY_ROLE_USER))).key
    for text in ("role = USER AND state = ACTIVE", "state != REVOKED AND role = USER"):
        assert [
            one.name for one in (await call("ListKeys", pb.ListKeysRequest(filter=text))).keys
        ] == [key.name]
    error = await refused(call("ListKeys", pb.ListKeysRequest(filter="state = active")))
    assert (error.reason, "ACTIVE, REVOKED, UNREADABLE" in error.message) == ("FILTER", True)


async def test_a_key_that_is_given_for_its_id_is_not_told_again(call: Call) -> None:
    secret = (await call("CreateKey", asked(scopes=["jobs"]))).secret
    for method, request in (
        ("GetKey", pb.GetKeyRequest(name=f"keys/{secret}")),
        ("RevokeKey", pb.RevokeKeyRequest(name=f"keys/{secret}")),
    ):
        error = await refused(call(method, request))
        assert error.reason == "KEY_NOT_FOUND" and "looks like a key" in error.message
        assert secret not in error.message


async def test_the_last_key_that_manages_keys_stays(call: Call) -> None:
    first = pb.RevokeKeyRequest(name="keys/first")
    await call("CreateKey", asked(scopes=["jobs"]))
    error = await refused(call("RevokeKey", first))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "LAST_ADMIN_KEY")
    less = pb.Key(name="keys/first", spec=pb.KeySpec(role=pb.KEY_ROLE_DEVELOPER))
    mask = FieldMask(paths=["spec.role", "spec.scopes"])
    error = await refused(call("UpdateKey", pb.UpdateKeyRequest(key=less, update_mask=mask)))
    assert error.reason == "LAST_ADMIN_KEY"
    less.spec.label = "mine"
    await call(
        "UpdateKey", pb.UpdateKeyRequest(key=less, update_mask=FieldMask(paths=["spec.label"]))
    )


async def test_administrators_who_revoke_each_other_leave_one(redis_client: Redis) -> None:
    managers = [KeyManager(redis_client, KeyStore(redis_client)) for _ in range(4)]
    made = [(await managers[0].create(wanted(pb.KeySpec(scopes=["admin"]))))[1] for _ in managers]
    caller = Principal("acme", "k", frozenset({"admin"}))
    answers = await asyncio.gather(
        *(manager.revoke(key.id, caller) for manager, key in zip(managers, made, strict=True)),
        return_exceptions=True,
    )
    refused = [one for one in answers if isinstance(one, PlinthError)]
    assert [one.reason for one in refused] == ["LAST_ADMIN_KEY"]
    assert sum(entry.administers for entry in await KeyStore(redis_client).entries()) == 1


async def test_there_is_an_end_to_keys(redis_client: Redis) -> None:
    store = KeyStore(redis_client)
    manager = KeyManager(redis_client, store, max_keys=2)
    caller = Principal("acme", "k", frozenset({"admin"}))
    spec = wanted(pb.KeySpec(scopes=["jobs"]))
    once = await manager.create(spec, caller, "credential", "once")
    _, second = await manager.create(spec)
    for request_id in ("", "twice"):
        with pytest.raises(ResourceExhausted) as caught:
            await manager.create(spec, caller, "credential", request_id)
        assert caught.value.reason == "TOO_MANY_KEYS"
    again = await manager.create(spec, caller, "credential", "once")  # makes none
    assert (again[0], again[1].id) == (once[0], once[1].id)
    await manager.revoke(second.id, caller)
    await manager.delete(second.id, "", caller)
    await manager.create(spec)


async def test_only_administrators_manage_keys(call: Call) -> None:
    every = sorted(ROLES["developer"] | {"deployments", "metrics"})
    key = (await call("CreateKey", asked(scopes=every))).secret
    for method in pb.DESCRIPTOR.services_by_name["KeyService"].methods:
        request = getattr(pb, method.input_type.name)()
        assert (await refused(call(method.name, request, key))).code == "PERMISSION_DENIED"
