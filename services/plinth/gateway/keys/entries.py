"""One API key as Redis has it: the hash of the key, and its record or what can't be read as one."""

from __future__ import annotations

from dataclasses import dataclass

from plinth.gateway.keys.records import KeyRecord

_UNREADABLE = "unreadable-"  # and the first digits of the hash: the id of a record without one


@dataclass(frozen=True)
class KeyEntry:
    """digest: SHA-256 of the key, hexadecimal. raw: its record as it is kept; record: None where
    that can't be read. confirmed: when Redis was last asked for it, on the store's clock."""

    digest: str
    raw: bytes
    record: KeyRecord | None
    confirmed: float

    @property
    def id(self) -> str:
        """By which operators name it."""
        if self.record is None:
            return _UNREADABLE + self.digest[:12]
        return self.record.key_id

    @property
    def revoked(self) -> bool:
        return self.record is not None and self.record.revoked

    @property
    def administers(self) -> bool:
        """Whether it is taken, and may manage keys."""
        record = self.record
        return record is not None and not record.revoked and "admin" in record.all_scopes

    @property
    def created_unix_ms(self) -> int:
        """0: not known."""
        return 0 if self.record is None else self.record.created_unix_ms

    def position(self) -> str:
        """In lists, by age; no two keys have the same."""
        return f"{self.created_unix_ms:015d}.{self.digest}"
