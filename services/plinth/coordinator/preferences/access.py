"""Who may change a collection: the tenant that made it, and operators. In the collection of live
answers, which is the platform's, each tenant has tasks of its own."""

from __future__ import annotations

from plinth.coordinator.preferences.collection import Collection
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.api.owners import check_owner, owner_of
from plinth.shared.identity import SYSTEM, Principal
from plinth.shared.preference_names import LIVE_COLLECTION
from plinth.v1 import owner_pb2


async def admitted(collection: Collection, principal: Principal, *, making: bool = False) -> str:
    """The tenant whose tasks alone `principal` may judge and change; "": all of the collection.

    making: a task is added, which makes the collection if there is none. PermissionDenied for a
    collection of another tenant.
    """
    shared = collection.collection == LIVE_COLLECTION
    if making:
        maker = await collection.claim(owner_of(SYSTEM if shared else principal))
    else:
        maker = await collection.maker()
    check_owner(maker.owner, principal, f"collection {collection.collection!r}")
    return principal.tenant if shared and "admin" not in principal.scopes else ""


def check_task(task: rec.PreferenceTaskRecord, tenant: str, principal: Principal) -> None:
    """PermissionDenied where `admitted` gave a tenant that the task is not of."""
    if tenant:
        owner = owner_pb2.Owner(tenant=task.tenant, key_id=task.key_id)
        check_owner(owner, principal, f"task {task.task_id} of collection {task.collection}")


async def check_whole(collection: Collection, principal: Principal) -> None:
    """PermissionDenied unless `principal` may change all of the collection."""
    if await admitted(collection, principal):
        principal.require("admin")
