"""OperationsService: what an operator wants to know of all stages, and does about dead letters."""

from __future__ import annotations

from typing import Any

from plinth.gateway.core import GatewayCore
from plinth.gateway.services.queue_operations import DEAD_LETTER, ITEM, QUEUE
from plinth.shared.api.paging import Pages
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import operations_pb2 as pb
from plinth.v1 import operations_pb2_grpc


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    """The RPCs; see operations.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._status = core.status
        self._queues = core.queues
        self._pages = Pages(core.token)

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.OperationsService",
            lambda server: operations_pb2_grpc.add_OperationsServiceServicer_to_server(
                self, server
            ),
        )

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        return await self._status.read()

    async def GetQueue(self, request: pb.GetQueueRequest, context: Any) -> pb.GetQueueResponse:
        return pb.GetQueueResponse(queue=await self._queues.get(QUEUE.id(request.name)))

    async def ListQueues(
        self, request: pb.ListQueuesRequest, context: Any
    ) -> pb.ListQueuesResponse:
        size, behind = self._pages.size(request), self._pages.position(request)
        names = [name for name in await self._queues.names() if name > behind]
        page = names[:size]
        more = len(names) > size
        return pb.ListQueuesResponse(
            queues=[await self._queues.get(name) for name in page],
            next_page_token=self._pages.token(request, page[-1]) if more else "",
        )

    async def GetQueueItem(
        self, request: pb.GetQueueItemRequest, context: Any
    ) -> pb.GetQueueItemResponse:
        return pb.GetQueueItemResponse(item=await self._queues.item(*ITEM.ids(request.name)))

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        queue = QUEUE.id(request.parent, "parent")
        size, behind = self._pages.size(request), self._pages.position(request)
        letters, position = await self._queues.dead_letters(queue, behind, size)
        return pb.ListDeadLettersResponse(
            dead_letters=letters,
            next_page_token=self._pages.token(request, position) if position else "",
        )

    async def RequeueDeadLetter(
        self, request: pb.RequeueDeadLetterRequest, context: Any
    ) -> pb.RequeueDeadLetterResponse:
        item = await self._queues.requeue(*DEAD_LETTER.ids(request.name))
        return pb.RequeueDeadLetterResponse(item=item)

    async def DeleteDeadLetter(
        self, request: pb.DeleteDeadLetterRequest, context: Any
    ) -> pb.DeleteDeadLetterResponse:
        await self._queues.discard(*DEAD_LETTER.ids(request.name))
        return pb.DeleteDeadLetterResponse()
