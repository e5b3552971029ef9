"""Who holds which block of the paged cache. Integers only: no tensors, no time, no requests.

A block is free (holds nothing), live (one or more sequences hold it) or cached (nobody holds it,
but its content is known and may be used again); free + live + cached = total, always. Only full
blocks are ever shared, and a full block is never written again, so no block is writable by two
sequences and nothing has to be copied on write.

A block's key covers its tokens, all tokens before them (through the parent's key), and a salt
(binding and tenant): a hash of 128 bits, keyed with a secret of the process, so that nobody
outside of it can build two prefixes with one key. At a hit the block's own tokens are compared as
well; what came before them, and the salt, stand behind the key alone.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict, deque
from collections.abc import Sequence


class BlockPool:
    """All blocks of one cache."""

    def __init__(self, total: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.total, self.block_size, self.prefix_cache = total, block_size, prefix_cache
        self._free: deque[int] = deque(range(total))
        self._holders: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._by_key: dict[bytes, int] = {}
        self._content: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self._secret = secrets.token_bytes(32)

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds but whose content may serve again."""
        return len(self._cached)

    @property
    def live(self) -> int:
        """Blocks held by at least one sequence."""
        return len(self._holders)

    @property
    def available(self) -> int:
        """Blocks that `allocate` could give now."""
        return len(self._free) + len(self._cached)

    def holders(self, block: int) -> int:
        """How many sequences hold this block."""
        return self._holders.get(block, 0)

    def is_sealed(self, block: int) -> bool:
        """Whether its content is registered: it must not be written."""
        return block in self._content

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks to write, or None (and nothing changes) when there are too few.

        Free ones first, then the cached ones that were used longest ago.
        """
        if count > self.available:
            return None
        blocks = []
        for _ in range(count):
            if not self._free:
                self._evict()
            block = self._free.popleft()
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        key, _ = self._content.pop(block)
        del self._by_key[key]
        self._free.append(block)

    def release(self, blocks: Sequence[int]) -> list[int]:
        """Give up one hold on each; returns those that hold nothing any more.

        The last of a prefix goes first in the line to be evicted, so that what survives is a
        prefix that can still be found.
        """
        emptied = []
        for block in reversed(blocks):
            left = self._holders[block] - 1
            if left:
                self._holders[block] = left
                continue
            del self._holders[block]
            if block in self._content:
                self._cached[block] = None
            else:
                self._free.append(block)
                emptied.append(block)
        return emptied

    def unseal(self, blocks: Sequence[int]) -> None:
        """Forget what these blocks hold: nobody finds them any more. Who holds them goes on."""
        for block in blocks:
            if block in self._content:
                key, _ = self._content.pop(block)
                del self._by_key[key]

    def root(self, salt: str) -> bytes:
        """The key before the first block of a sequence with this salt."""
        return hashlib.blake2b(salt.encode(), key=self._secret, digest_size=16).digest()

    def key(self, parent: bytes, tokens: Sequence[int]) -> bytes:
        """The key of a full block that follows `parent`."""
        content = parent + b"".join(t.to_bytes(4, "little") for t in tokens)
        return hashlib.blake2b(content, key=self._secret, digest_size=16).digest()

    def match(self, salt: str, tokens: Sequence[int], limit: int) -> tuple[list[int], list[bytes]]:
        """Hold the longest known prefix of `tokens`, at most `limit` of them, in whole blocks.

        Returns the blocks and their keys; the caller now holds the blocks.
        """
        blocks: list[int] = []
        keys: list[bytes] = []
        if not self.prefix_cache:
            return blocks, keys
        size, parent = self.block_size, self.root(salt)
        for start in range(0, limit - size + 1, size):
            part = tuple(tokens[start : start + size])
            parent = self.key(parent, part)
            block = self._by_key.get(parent)
            if block is None or self._content[block][1] != part:
                break
            self._cached.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1
            blocks.append(block)
            keys.append(parent)
        return blocks, keys

    def seal(self, block: int, parent: bytes, tokens: Sequence[int]) -> bytes:
        """Register a full, computed block under its key; returns the key.

        Where another block has that key already, this one stays its holder's own.
        """
        part = tuple(tokens)
        key = self.key(parent, part)
        if self.prefix_cache and key not in self._by_key and block not in self._content:
            self._by_key[key] = block
            self._content[block] = (key, part)
        return key
