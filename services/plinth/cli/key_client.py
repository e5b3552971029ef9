"""API keys through the gateway's gRPC API."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Self

from google.protobuf.field_mask_pb2 import FieldMask

from plinth.cli.gateway_access import api_key, gateway_address
from plinth.shared.rpc.gateway_channel import GatewayAddress, GatewayConnection
from plinth.shared.settings import Settings
from plinth.v1 import keys_pb2 as pb
from plinth.v1 import keys_pb2_grpc

_CALL_S = 30.0
_PAGE = 500


class KeyClient(GatewayConnection):
    """KeyService, each call by itself."""

    def __init__(self, address: GatewayAddress | str, key: str) -> None:
        super().__init__(address, key)
        self._stub: Any = keys_pb2_grpc.KeyServiceStub(self.channel)

    @classmethod
    def of(cls, settings: Settings, url: str | None) -> Self:
        """At `url`, or at the stack in the data directory."""
        return cls(gateway_address(settings, url), api_key(settings))

    def create(self, spec: pb.KeySpec) -> pb.CreateKeyResponse:
        request = pb.CreateKeyRequest(spec=spec, request_id=str(uuid.uuid4()))
        made: pb.CreateKeyResponse = self.call(self._stub.CreateKey, request, _CALL_S)
        return made

    def keys(self, filter: str) -> Iterator[pb.Key]:
        """All of them, oldest first."""
        request = pb.ListKeysRequest(filter=filter, page_size=_PAGE)
        while True:
            page = self.call(self._stub.ListKeys, request, _CALL_S)
            yield from page.keys
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def update(self, key_id: str, spec: pb.KeySpec, paths: Sequence[str]) -> pb.Key:
        """With what `paths` name of `spec`."""
        request = pb.UpdateKeyRequest(
            key=pb.Key(name=f"keys/{key_id}", spec=spec), update_mask=FieldMask(paths=paths)
        )
        key: pb.Key = self.call(self._stub.UpdateKey, request, _CALL_S).key
        return key

    def revoke(self, key_id: str) -> pb.Key:
        request = pb.RevokeKeyRequest(name=f"keys/{key_id}")
        key: pb.Key = self.call(self._stub.RevokeKey, request, _CALL_S).key
        return key

    def delete(self, key_id: str) -> None:
        self.call(self._stub.DeleteKey, pb.DeleteKeyRequest(name=f"keys/{key_id}"), _CALL_S)
