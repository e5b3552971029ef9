"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, mask, request
from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import keys_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_CREATE_KEY = Method.of(keys_pb2.DESCRIPTOR, "KeyService", "CreateKey")
_GET_KEY = Method.of(keys_pb2.DESCRIPTOR, "KeyService", "GetKey")
_LIST_KEYS = Method.of(keys_pb2.DESCRIPTOR, "KeyService", "ListKeys")
_UPDATE_KEY = Method.of(keys_pb2.DESCRIPTOR, "KeyService", "UpdateKey")
_REVOKE_KEY = Method.of(keys_pb2.DESCRIPTOR, "KeyService", "RevokeKey")
_DELETE_KEY = Method.of(keys_pb2.DESCRIPTOR, "KeyService", "DeleteKey")


class KeyService:
    """API keys: who may call the platform, and what. All of them, of all tenants, are managed by
    keys with the scope "admin".

    A change is known to the gateway that made it at once and to all others within 5 seconds; to
    one that can't reach Redis, after `gateway.keys_stale_s` (60 seconds by default).
    """

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def create_key(
        self,
        key: keys_pb2.Key | None = None,
        *,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> keys_pb2.CreateKeyResponse:
        """Makes a key. Its secret is in the answer and is kept nowhere, so it can't be shown
        again.

        Errors: INVALID_ARGUMENT (SCOPE_UNKNOWN, or a tenant or label that can't be one),
        ALREADY_EXISTS (REQUEST_ID_USED), RESOURCE_EXHAUSTED (TOO_MANY_KEYS: there are 10,000).

        key: Its spec; what else is set of it is ignored.
        request_id: Makes the call safe to send again: for an hour the same caller's same
          request is answered with the same key and the same secret, afterwards with
          ALREADY_EXISTS (REQUEST_ID_USED), as is another request of the same id at any time. 1
          to 128 letters, digits, '.', '_', ':' or '-', a UUID best; empty: every call makes a
          key.
        """
        response: keys_pb2.CreateKeyResponse = self._calls.unary(
            _CREATE_KEY,
            request(keys_pb2.CreateKeyRequest, key=key, request_id=request_id),
            timeout,
            metadata,
        )
        return response

    def get_key(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> keys_pb2.Key:
        """One key, without its secret. Errors: NOT_FOUND (KEY_NOT_FOUND).

        name: Its name: "keys/…".
        """
        response: keys_pb2.GetKeyResponse = self._calls.unary(
            _GET_KEY, request(keys_pb2.GetKeyRequest, name=name), timeout, metadata
        )
        return response.key

    def list_keys(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[keys_pb2.Key, keys_pb2.ListKeysResponse]:
        """Keys, oldest first, revoked ones too; never their secrets. Errors: INVALID_ARGUMENT
        (FILTER, PAGE_TOKEN).

        page_size: At most so many keys; 0: 50. At most 1,000.
        filter: Comparisons joined by AND, of `tenant`, `label`, `role` (USER, DEVELOPER),
          `scopes` (all that it has: `scopes:admin`), `state` (ACTIVE, REVOKED, UNREADABLE) and
          `create_time`: `tenant = "acme" AND state = ACTIVE`. Empty: all.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_KEYS, asked, timeout, metadata),
            request(keys_pb2.ListKeysRequest, page_size=page_size, filter=filter),
            "keys",
        )

    def update_key(
        self,
        key: keys_pb2.Key | None = None,
        *,
        update_mask: Iterable[str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> keys_pb2.Key:
        """Sets `spec.label`, `spec.role` and `spec.scopes`. Watches for which the key lacks the
        scope then end with PERMISSION_DENIED; other calls that are running go on.

        Errors: NOT_FOUND (KEY_NOT_FOUND), INVALID_ARGUMENT (UPDATE_MASK, SCOPE_UNKNOWN),
        ABORTED (ETAG_MISMATCH), FAILED_PRECONDITION (KEY_REVOKED, KEY_RECORD_UNREADABLE;
        LAST_ADMIN_KEY where no key with the scope "admin" would be left).

        key: Its name, and what is to be set. With an `etag`, it is changed only if it still has
          that one (ABORTED with the present one if not).
        update_mask: Of "spec.label", "spec.role" and "spec.scopes"; "spec" and "*": all of
          them; empty: those that are set in `key`.
        """
        response: keys_pb2.UpdateKeyResponse = self._calls.unary(
            _UPDATE_KEY,
            request(keys_pb2.UpdateKeyRequest, key=key, update_mask=mask(update_mask)),
            timeout,
            metadata,
        )
        return response.key

    def revoke_key(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> keys_pb2.Key:
        """Ends a key for good; running watches of it end with UNAUTHENTICATED. Its record stays,
        so that nothing brings the key back. To revoke a revoked key again changes nothing.

        Errors: NOT_FOUND (KEY_NOT_FOUND), FAILED_PRECONDITION (LAST_ADMIN_KEY for the last key
        with the scope "admin": make another one first).

        name: Its name: "keys/…".
        """
        response: keys_pb2.RevokeKeyResponse = self._calls.unary(
            _REVOKE_KEY, request(keys_pb2.RevokeKeyRequest, name=name), timeout, metadata
        )
        return response.key

    def delete_key(
        self,
        name: str = "",
        *,
        etag: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Removes the record of a revoked key.

        Errors: NOT_FOUND (KEY_NOT_FOUND), ABORTED (ETAG_MISMATCH), FAILED_PRECONDITION
        (KEY_NOT_REVOKED; FIRST_KEY for the platform's first key, which a gateway would make
        again).

        name: Its name: "keys/…".
        etag: If given, it is removed only if it still has this etag.
        """
        self._calls.unary(
            _DELETE_KEY, request(keys_pb2.DeleteKeyRequest, name=name, etag=etag), timeout, metadata
        )


class AsyncKeyService:
    """API keys: who may call the platform, and what. All of them, of all tenants, are managed by
    keys with the scope "admin".

    A change is known to the gateway that made it at once and to all others within 5 seconds; to
    one that can't reach Redis, after `gateway.keys_stale_s` (60 seconds by default).
    """

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def create_key(
        self,
        key: keys_pb2.Key | None = None,
        *,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> keys_pb2.CreateKeyResponse:
        """Makes a key. Its secret is in the answer and is kept nowhere, so it can't be shown
        again.

        Errors: INVALID_ARGUMENT (SCOPE_UNKNOWN, or a tenant or label that can't be one),
        ALREADY_EXISTS (REQUEST_ID_USED), RESOURCE_EXHAUSTED (TOO_MANY_KEYS: there are 10,000).

        key: Its spec; what else is set of it is ignored.
        request_id: Makes the call safe to send again: for an hour the same caller's same
          request is answered with the same key and the same secret, afterwards with
          ALREADY_EXISTS (REQUEST_ID_USED), as is another request of the same id at any time. 1
          to 128 letters, digits, '.', '_', ':' or '-', a UUID best; empty: every call makes a
          key.
        """
        response: keys_pb2.CreateKeyResponse = await self._calls.unary(
            _CREATE_KEY,
            request(keys_pb2.CreateKeyRequest, key=key, request_id=request_id),
            timeout,
            metadata,
        )
        return response

    async def get_key(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> keys_pb2.Key:
        """One key, without its secret. Errors: NOT_FOUND (KEY_NOT_FOUND).

        name: Its name: "keys/…".
        """
        response: keys_pb2.GetKeyResponse = await self._calls.unary(
            _GET_KEY, request(keys_pb2.GetKeyRequest, name=name), timeout, metadata
        )
        return response.key

    def list_keys(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[keys_pb2.Key, keys_pb2.ListKeysResponse]:
        """Keys, oldest first, revoked ones too; never their secrets. Errors: INVALID_ARGUMENT
        (FILTER, PAGE_TOKEN).

        page_size: At most so many keys; 0: 50. At most 1,000.
        filter: Comparisons joined by AND, of `tenant`, `label`, `role` (USER, DEVELOPER),
          `scopes` (all that it has: `scopes:admin`), `state` (ACTIVE, REVOKED, UNREADABLE) and
          `create_time`: `tenant = "acme" AND state = ACTIVE`. Empty: all.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_KEYS, asked, timeout, metadata),
            request(keys_pb2.ListKeysRequest, page_size=page_size, filter=filter),
            "keys",
        )

    async def update_key(
        self,
        key: keys_pb2.Key | None = None,
        *,
        update_mask: Iterable[str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> keys_pb2.Key:
        """Sets `spec.label`, `spec.role` and `spec.scopes`. Watches for which the key lacks the
        scope then end with PERMISSION_DENIED; other calls that are running go on.

        Errors: NOT_FOUND (KEY_NOT_FOUND), INVALID_ARGUMENT (UPDATE_MASK, SCOPE_UNKNOWN),
        ABORTED (ETAG_MISMATCH), FAILED_PRECONDITION (KEY_REVOKED, KEY_RECORD_UNREADABLE;
        LAST_ADMIN_KEY where no key with the scope "admin" would be left).

        key: Its name, and what is to be set. With an `etag`, it is changed only if it still has
          that one (ABORTED with the present one if not).
        update_mask: Of "spec.label", "spec.role" and "spec.scopes"; "spec" and "*": all of
          them; empty: those that are set in `key`.
        """
        response: keys_pb2.UpdateKeyResponse = await self._calls.unary(
            _UPDATE_KEY,
            request(keys_pb2.UpdateKeyRequest, key=key, update_mask=mask(update_mask)),
            timeout,
            metadata,
        )
        return response.key

    async def revoke_key(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> keys_pb2.Key:
        """Ends a key for good; running watches of it end with UNAUTHENTICATED. Its record stays,
        so that nothing brings the key back. To revoke a revoked key again changes nothing.

        Errors: NOT_FOUND (KEY_NOT_FOUND), FAILED_PRECONDITION (LAST_ADMIN_KEY for the last key
        with the scope "admin": make another one first).

        name: Its name: "keys/…".
        """
        response: keys_pb2.RevokeKeyResponse = await self._calls.unary(
            _REVOKE_KEY, request(keys_pb2.RevokeKeyRequest, name=name), timeout, metadata
        )
        return response.key

    async def delete_key(
        self,
        name: str = "",
        *,
        etag: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Removes the record of a revoked key.

        Errors: NOT_FOUND (KEY_NOT_FOUND), ABORTED (ETAG_MISMATCH), FAILED_PRECONDITION
        (KEY_NOT_REVOKED; FIRST_KEY for the platform's first key, which a gateway would make
        again).

        name: Its name: "keys/…".
        etag: If given, it is removed only if it still has this etag.
        """
        await self._calls.unary(
            _DELETE_KEY, request(keys_pb2.DeleteKeyRequest, name=name, etag=etag), timeout, metadata
        )
