"""Who holds which block of the paged cache. Integers only: no tensors, no time, no requests.

One pool serves all groups of layers: a block takes the same memory in each (`specs.state_groups`),
and belongs to the group in whose table it stands. So layers with a window, whose tables stay
short, leave the memory that they don't need to the others, whatever the lengths of the sequences.

A block is free (holds nothing), live (one or more sequences hold it) or cached (nobody holds it,
but its content is known and may be used again); free + live + cached = total, always. Only full
blocks are ever shared, and a full block is never written again, so no block is writable by two
sequences and nothing has to be copied on write.

A block's key covers its tokens, all tokens before them (through the parent's key), and a salt
(binding and tenant): a hash of 128 bits, keyed with a secret of the process, so that nobody
outside of it can build two prefixes with one key. At a hit the block's own tokens are compared as
well; what came before them, and the salt, stand behind the key alone. Each group has its own block
under a key. A prefix of some length is known where the groups without a window have all blocks
of it, and those with one the blocks that the next token sees.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from plinth.engine.tables import Tables, unseen


class BlockPool:
    """All blocks of one cache, for groups of layers with these windows (0: none)."""

    def __init__(
        self,
        total: int,
        block_size: int,
        *,
        windows: Sequence[int] = (0,),
        prefix_cache: bool = True,
    ) -> None:
        self.total, self.block_size, self.prefix_cache = total, block_size, prefix_cache
        self.windows, self.groups = tuple(windows), len(windows)
        self._windowed = any(windows)
        self._free: deque[int] = deque(range(total))
        self._holders: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        # By group and key; and what a block holds: its group and key, and its tokens.
        self._by_key: dict[tuple[int, bytes], int] = {}
        self._content: dict[int, tuple[tuple[int, bytes], tuple[int, ...]]] = {}
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
        name, _ = self._content.pop(block)
        del self._by_key[name]
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

    def missing(self, tables: Tables, positions: int) -> int:
        """How many blocks lack until the tables reach `positions`."""
        return self.groups * max(0, -(-positions // self.block_size) - tables.reach)

    def reserve(self, tables: Tables, positions: int) -> bool:
        """Make the tables reach `positions`; False (and no change) without enough blocks."""
        missing = self.missing(tables, positions)
        if missing:
            blocks = self.allocate(missing)
            if blocks is None:
                return False
            if not tables.blocks:
                tables.blocks, tables.skipped = [[] for _ in self.windows], [0] * self.groups
            each = missing // self.groups
            for group, table in enumerate(tables.blocks):
                table.extend(blocks[group * each : (group + 1) * each])
            tables.reach += each
        return True

    def trim(self, tables: Tables, computed: int) -> list[int]:
        """Give up what is of no use once the first `computed` tokens are there: blocks past them,
        and blocks that a window has left behind. Returns those that hold nothing any more."""
        keep = -(-max(computed, 1) // self.block_size)
        if tables.reach <= keep and not self._windowed:
            return []
        rejected = [block for number in range(keep, tables.reach) for block in tables.of(number)]
        emptied = self.release(rejected) if rejected else []
        for group, window in enumerate(self.windows[: len(tables.blocks)]):
            table, skipped = tables.blocks[group], tables.skipped[group]
            if tables.reach > keep:
                del table[max(0, keep - skipped) :]
            if window:
                gone = min(unseen(window, computed, self.block_size) - skipped, len(table))
                if gone > 0:
                    emptied += self.release(table[:gone])
                    del table[:gone]
                    tables.skipped[group] += gone
        tables.reach = min(tables.reach, keep)
        return emptied

    def unseal(self, blocks: Iterable[int]) -> None:
        """Forget what these blocks hold: nobody finds them any more. Who holds them goes on."""
        for block in blocks:
            if block in self._content:
                name, _ = self._content.pop(block)
                del self._by_key[name]

    def root(self, salt: str) -> bytes:
        """The key before the first block of a sequence with this salt."""
        return hashlib.blake2b(salt.encode(), key=self._secret, digest_size=16).digest()

    def key(self, parent: bytes, tokens: Sequence[int]) -> bytes:
        """The key of a full block that follows `parent`."""
        content = parent + b"".join(t.to_bytes(4, "little") for t in tokens)
        return hashlib.blake2b(content, key=self._secret, digest_size=16).digest()

    def match(self, salt: str, tokens: Sequence[int], limit: int) -> tuple[Tables, list[bytes]]:
        """Hold the longest known prefix of `tokens`, at most `limit` of them, in whole blocks.

        Returns its tables and the blocks' keys; the caller now holds the blocks.
        """
        found, keys = self._find(salt, tokens, limit) if self.prefix_cache else ([], [])
        # By group: since which block all are known, up to the present one.
        since, reach, skipped = [0] * self.groups, 0, [0] * self.groups
        for end, blocks in enumerate(found, 1):
            since = [
                end if block is None else first for block, first in zip(blocks, since, strict=True)
            ]
            read = [
                unseen(window, end * self.block_size, self.block_size) for window in self.windows
            ]
            if all(first <= needed for first, needed in zip(since, read, strict=True)):
                reach, skipped = end, read
        tables = Tables([[] for _ in self.windows], skipped, reach)
        for number, blocks in enumerate(found[:reach]):
            for group, block in enumerate(blocks):
                if number >= skipped[group] and block is not None:
                    self._cached.pop(block, None)
                    self._holders[block] = self._holders.get(block, 0) + 1
                    tables.blocks[group].append(block)
        return tables, keys[:reach]

    def _find(
        self, salt: str, tokens: Sequence[int], limit: int
    ) -> tuple[list[list[int | None]], list[bytes]]:
        """The block of each group for each whole block of `tokens`, with their keys; until a group
        that needs all of them lacks one."""
        found: list[list[int | None]] = []
        keys: list[bytes] = []
        size, parent = self.block_size, self.root(salt)
        for start in range(0, limit - size + 1, size):
            part = tuple(tokens[start : start + size])
            parent = self.key(parent, part)
            blocks = [self._known(group, parent, part) for group in range(self.groups)]
            if any(
                block is None and not window
                for block, window in zip(blocks, self.windows, strict=True)
            ):
                break
            found.append(blocks)
            keys.append(parent)
        return found, keys

    def _known(self, group: int, key: bytes, part: tuple[int, ...]) -> int | None:
        block = self._by_key.get((group, key))
        return block if block is not None and self._content[block][1] == part else None

    def seal(self, blocks: Iterable[int], parent: bytes, tokens: Sequence[int]) -> bytes:
        """Register full, computed blocks of these tokens, one of each group, under their key;
        returns the key.

        Where a group has another block of that key already, this one stays its holder's own.
        """
        part = tuple(tokens)
        key = self.key(parent, part)
        if self.prefix_cache:
            for group, block in enumerate(blocks):
                name = (group, key)
                if name not in self._by_key and block not in self._content:
                    self._by_key[name] = block
                    self._content[block] = (name, part)
        return key
