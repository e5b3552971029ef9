"""Queues through the gateway's gRPC API."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Self

from plinth.cli.gateway_access import api_key, gateway_address
from plinth.shared.rpc.gateway_channel import GatewayAddress, GatewayConnection
from plinth.shared.settings import Settings
from plinth.v1 import operations_pb2 as pb
from plinth.v1 import operations_pb2_grpc

_CALL_S = 30.0


class OperationsClient(GatewayConnection):
    """Queues and dead letters."""

    def __init__(self, address: GatewayAddress | str, key: str) -> None:
        super().__init__(address, key)
        self._stub: Any = operations_pb2_grpc.OperationsServiceStub(self.channel)

    @classmethod
    def of(cls, settings: Settings, url: str | None) -> Self:
        """At `url`, or at the stack in the data directory."""
        return cls(gateway_address(settings, url), api_key(settings))

    def queues(self) -> Iterator[pb.Queue]:
        """All of them, by name."""
        request = pb.ListQueuesRequest()
        while True:
            page = self.call(self._stub.ListQueues, request, _CALL_S)
            yield from page.queues
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def item(self, queue: str, item: str) -> pb.QueueItem:
        request = pb.GetQueueItemRequest(name=f"queues/{queue}/items/{item}")
        found: pb.QueueItem = self.call(self._stub.GetQueueItem, request, _CALL_S).item
        return found

    def dead_letters(self, queue: str, limit: int) -> list[pb.DeadLetter]:
        """Up to `limit` of one queue, newest first."""
        return list(islice(self._dead_letters(queue, limit), limit))

    def requeue(self, queue: str, item: str) -> None:
        request = pb.RequeueDeadLetterRequest(name=f"queues/{queue}/deadLetters/{item}")
        self.call(self._stub.RequeueDeadLetter, request, _CALL_S)

    def discard(self, queue: str, item: str) -> None:
        request = pb.DeleteDeadLetterRequest(name=f"queues/{queue}/deadLetters/{item}")
        self.call(self._stub.DeleteDeadLetter, request, _CALL_S)

    def _dead_letters(self, queue: str, page_size: int) -> Iterator[pb.DeadLetter]:
        request = pb.ListDeadLettersRequest(parent=f"queues/{queue}", page_size=page_size)
        while True:
            page = self.call(self._stub.ListDeadLetters, request, _CALL_S)
            yield from page.dead_letters
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
