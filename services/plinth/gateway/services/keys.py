"""KeyService: API keys through the front door."""

from __future__ import annotations

from typing import Any

from plinth.gateway.core import GatewayCore
from plinth.gateway.keys.entries import KeyEntry
from plinth.gateway.keys.manager import check_request_id
from plinth.gateway.keys.messages import FILTERS, KEY, message, wanted
from plinth.gateway.keys.records import KeyRecord
from plinth.shared.api.field_masks import updated
from plinth.shared.api.paging import Pages
from plinth.shared.identity import current_principal
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import keys_pb2 as pb
from plinth.v1 import keys_pb2_grpc

SETTABLE = ("spec.label", "spec.role", "spec.scopes")


class KeyServicer(keys_pb2_grpc.KeyServiceServicer):
    """The RPCs; see keys.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._keys = core.key_manager
        self._store = core.keystore
        self._pages = Pages(core.token)

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.KeyService",
            lambda server: keys_pb2_grpc.add_KeyServiceServicer_to_server(self, server),
        )

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        check_request_id(request.request_id)
        secret, entry = await self._keys.create(
            wanted(request.key.spec), current_principal(), _credential(context), request.request_id
        )
        return pb.CreateKeyResponse(key=message(entry), secret=secret)

    async def GetKey(self, request: pb.GetKeyRequest, context: Any) -> pb.GetKeyResponse:
        return pb.GetKeyResponse(key=message(await self._keys.get(KEY.id(request.name))))

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        asked, size = FILTERS.parse(request.filter), self._pages.size(request)
        behind = self._pages.position(request)
        entries = await self._store.entries()
        found = [one for one in entries if one.position() > behind and asked(one)]
        page = found[:size]
        more = len(found) > size
        return pb.ListKeysResponse(
            keys=map(message, page),
            next_page_token=self._pages.token(request, page[-1].position()) if more else "",
        )

    async def UpdateKey(self, request: pb.UpdateKeyRequest, context: Any) -> pb.UpdateKeyResponse:
        def change(present: KeyEntry) -> KeyRecord:
            mask = request.update_mask
            return wanted(updated(message(present), request.key, mask, SETTABLE).spec)

        key_id = KEY.id(request.key.name, "key.name")
        entry = await self._keys.update(key_id, request.key.etag, change, current_principal())
        return pb.UpdateKeyResponse(key=message(entry))

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Any) -> pb.RevokeKeyResponse:
        entry = await self._keys.revoke(KEY.id(request.name), current_principal())
        return pb.RevokeKeyResponse(key=message(entry))

    async def DeleteKey(self, request: pb.DeleteKeyRequest, context: Any) -> pb.DeleteKeyResponse:
        await self._keys.delete(KEY.id(request.name), request.etag, current_principal())
        return pb.DeleteKeyResponse()


def _credential(context: Any) -> str:
    """What the caller proved itself with; empty where the gateway asks for nothing."""
    for name, value in context.invocation_metadata() or ():
        if name.lower() == "authorization":
            return value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return ""
