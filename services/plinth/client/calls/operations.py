"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import operations_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_GET_STATUS = Method.of(operations_pb2.DESCRIPTOR, "OperationsService", "GetStatus")
_GET_QUEUE = Method.of(operations_pb2.DESCRIPTOR, "OperationsService", "GetQueue")
_LIST_QUEUES = Method.of(operations_pb2.DESCRIPTOR, "OperationsService", "ListQueues")
_GET_QUEUE_ITEM = Method.of(operations_pb2.DESCRIPTOR, "OperationsService", "GetQueueItem")
_LIST_DEAD_LETTERS = Method.of(operations_pb2.DESCRIPTOR, "OperationsService", "ListDeadLetters")
_REQUEUE_DEAD_LETTER = Method.of(
    operations_pb2.DESCRIPTOR, "OperationsService", "RequeueDeadLetter"
)
_DELETE_DEAD_LETTER = Method.of(operations_pb2.DESCRIPTOR, "OperationsService", "DeleteDeadLetter")


class OperationsService:
    """The platform as its operators see it: replicas, served models, queues, and work that failed
    for good. All of it comes from Redis; UNAVAILABLE while that is away."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def get_status(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.GetStatusResponse:
        """What runs, what is served, what waits."""
        response: operations_pb2.GetStatusResponse = self._calls.unary(
            _GET_STATUS, request(operations_pb2.GetStatusRequest), timeout, metadata
        )
        return response

    def get_queue(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.Queue:
        """One queue. Errors: NOT_FOUND (QUEUE_NOT_FOUND).

        name: Its name: "queues/…".
        """
        response: operations_pb2.GetQueueResponse = self._calls.unary(
            _GET_QUEUE, request(operations_pb2.GetQueueRequest, name=name), timeout, metadata
        )
        return response.queue

    def list_queues(
        self,
        page_size: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[operations_pb2.Queue, operations_pb2.ListQueuesResponse]:
        """Queues that ever held an item, by name. Errors: INVALID_ARGUMENT (PAGE_TOKEN).

        page_size: At most so many queues; 0: 50. At most 1,000.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_QUEUES, asked, timeout, metadata),
            request(operations_pb2.ListQueuesRequest, page_size=page_size),
            "queues",
        )

    def get_queue_item(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.QueueItem:
        """What became of one item of a queue. Errors: NOT_FOUND (QUEUE_NOT_FOUND, or
        ITEM_NOT_FOUND for one that was never added, or ended more than a week ago).

        name: Its name: "queues/{queue}/items/{item}".
        """
        response: operations_pb2.GetQueueItemResponse = self._calls.unary(
            _GET_QUEUE_ITEM,
            request(operations_pb2.GetQueueItemRequest, name=name),
            timeout,
            metadata,
        )
        return response.item

    def list_dead_letters(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[operations_pb2.DeadLetter, operations_pb2.ListDeadLettersResponse]:
        """Dead letters of one queue or of all, newest first within each queue. Errors: NOT_FOUND
        (QUEUE_NOT_FOUND), INVALID_ARGUMENT (PAGE_TOKEN).

        parent: The queue's name ("queues/trainer-jobs"), or "queues/-" for all queues.
        page_size: At most so many dead letters; 0: 50. At most 1,000.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_DEAD_LETTERS, asked, timeout, metadata),
            request(operations_pb2.ListDeadLettersRequest, parent=parent, page_size=page_size),
            "dead_letters",
        )

    def requeue_dead_letter(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.QueueItem:
        """Lets a dead letter run again, with fresh attempts and no deadline.

        Errors: NOT_FOUND (QUEUE_NOT_FOUND, DEAD_LETTER_NOT_FOUND), RESOURCE_EXHAUSTED
        (QUEUE_FULL).

        name: Its name: "queues/{queue}/deadLetters/{item}".
        """
        response: operations_pb2.RequeueDeadLetterResponse = self._calls.unary(
            _REQUEUE_DEAD_LETTER,
            request(operations_pb2.RequeueDeadLetterRequest, name=name),
            timeout,
            metadata,
        )
        return response.item

    def delete_dead_letter(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Removes a dead letter for good. Whoever waits for the item has been told that it failed
        when it became one.

        Errors: NOT_FOUND (QUEUE_NOT_FOUND, DEAD_LETTER_NOT_FOUND).

        name: Its name: "queues/{queue}/deadLetters/{item}".
        """
        self._calls.unary(
            _DELETE_DEAD_LETTER,
            request(operations_pb2.DeleteDeadLetterRequest, name=name),
            timeout,
            metadata,
        )


class AsyncOperationsService:
    """The platform as its operators see it: replicas, served models, queues, and work that failed
    for good. All of it comes from Redis; UNAVAILABLE while that is away."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def get_status(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.GetStatusResponse:
        """What runs, what is served, what waits."""
        response: operations_pb2.GetStatusResponse = await self._calls.unary(
            _GET_STATUS, request(operations_pb2.GetStatusRequest), timeout, metadata
        )
        return response

    async def get_queue(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.Queue:
        """One queue. Errors: NOT_FOUND (QUEUE_NOT_FOUND).

        name: Its name: "queues/…".
        """
        response: operations_pb2.GetQueueResponse = await self._calls.unary(
            _GET_QUEUE, request(operations_pb2.GetQueueRequest, name=name), timeout, metadata
        )
        return response.queue

    def list_queues(
        self,
        page_size: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[operations_pb2.Queue, operations_pb2.ListQueuesResponse]:
        """Queues that ever held an item, by name. Errors: INVALID_ARGUMENT (PAGE_TOKEN).

        page_size: At most so many queues; 0: 50. At most 1,000.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_QUEUES, asked, timeout, metadata),
            request(operations_pb2.ListQueuesRequest, page_size=page_size),
            "queues",
        )

    async def get_queue_item(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.QueueItem:
        """What became of one item of a queue. Errors: NOT_FOUND (QUEUE_NOT_FOUND, or
        ITEM_NOT_FOUND for one that was never added, or ended more than a week ago).

        name: Its name: "queues/{queue}/items/{item}".
        """
        response: operations_pb2.GetQueueItemResponse = await self._calls.unary(
            _GET_QUEUE_ITEM,
            request(operations_pb2.GetQueueItemRequest, name=name),
            timeout,
            metadata,
        )
        return response.item

    def list_dead_letters(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[operations_pb2.DeadLetter, operations_pb2.ListDeadLettersResponse]:
        """Dead letters of one queue or of all, newest first within each queue. Errors: NOT_FOUND
        (QUEUE_NOT_FOUND), INVALID_ARGUMENT (PAGE_TOKEN).

        parent: The queue's name ("queues/trainer-jobs"), or "queues/-" for all queues.
        page_size: At most so many dead letters; 0: 50. At most 1,000.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_DEAD_LETTERS, asked, timeout, metadata),
            request(operations_pb2.ListDeadLettersRequest, parent=parent, page_size=page_size),
            "dead_letters",
        )

    async def requeue_dead_letter(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.QueueItem:
        """Lets a dead letter run again, with fresh attempts and no deadline.

        Errors: NOT_FOUND (QUEUE_NOT_FOUND, DEAD_LETTER_NOT_FOUND), RESOURCE_EXHAUSTED
        (QUEUE_FULL).

        name: Its name: "queues/{queue}/deadLetters/{item}".
        """
        response: operations_pb2.RequeueDeadLetterResponse = await self._calls.unary(
            _REQUEUE_DEAD_LETTER,
            request(operations_pb2.RequeueDeadLetterRequest, name=name),
            timeout,
            metadata,
        )
        return response.item

    async def delete_dead_letter(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Removes a dead letter for good. Whoever waits for the item has been told that it failed
        when it became one.

        Errors: NOT_FOUND (QUEUE_NOT_FOUND, DEAD_LETTER_NOT_FOUND).

        name: Its name: "queues/{queue}/deadLetters/{item}".
        """
        await self._calls.unary(
            _DELETE_DEAD_LETTER,
            request(operations_pb2.DeleteDeadLetterRequest, name=name),
            timeout,
            metadata,
        )
