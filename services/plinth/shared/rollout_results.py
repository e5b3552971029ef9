"""How a rollout's answers travel: in the queue where they are small, through the store beyond that.

A queue's item holds at most 4 MiB, and Redis holds everything in memory; 16 answers of 16k tokens
are some 3 MB. A result by reference lies on the store for as long as the queue would keep it: files
are sorted by the hour in which they were made, and whoever makes one removes those of hours past.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from functools import cached_property

from plinth.internal.v1 import rollouts_pb2 as pb
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound
from plinth.shared.storage import Storage

MAX_SAMPLES = 64  # of one task
# A result is taken within seconds; a run that goes on after a stop may ask for it again.
RESULT_TTL_S = 3600.0
INLINE_BYTES = 1 << 20
MAX_RESULT_BYTES = 256 << 20  # of one prompt's answers, which shard and asker hold in memory
TOKEN_BYTES = 13  # at most: an id of up to five, and two log-probabilities in float32
_FOLDER = ".rollouts"  # hidden: no artifact, and no part of a backup
_HOUR_S = 3600.0


def largest(samples: int, max_tokens: int) -> int:
    """Bytes that `samples` answers of `max_tokens` may have."""
    return samples * (max_tokens * TOKEN_BYTES + 64)


def longest(samples: int) -> int:
    """Tokens that each of `samples` answers may have, for a result to be carried."""
    return (MAX_RESULT_BYTES // samples - 64) // TOKEN_BYTES


class RolloutResults:
    """Packs and unpacks results. `storage` is opened when one is too large to go by value."""

    def __init__(
        self, storage: Callable[[], Storage], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._open, self._clock = storage, clock

    @cached_property
    def _storage(self) -> Storage:
        return self._open()

    def pack(self, result: pb.RolloutResult) -> bytes:
        """The queue's value. May block on the store; raises what that raises."""
        whole = result.SerializeToString()
        if len(whole) <= INLINE_BYTES:
            return whole
        hour = math.floor(self._clock() / _HOUR_S)
        # What has been there for a whole hour and more is forgotten by the queue.
        for old in self._storage.names(_FOLDER):
            if old.isdigit() and int(old) < hour - RESULT_TTL_S / _HOUR_S:
                self._storage.remove_tree(f"{_FOLDER}/{old}")
        path = f"{_FOLDER}/{hour}/{secrets.token_hex(16)}"
        self._storage.create(path, whole)
        return pb.RolloutResult(
            revision=result.revision,
            weights_digest=result.weights_digest,
            shard_id=result.shard_id,
            stored=path,
        ).SerializeToString()

    def unpack(self, value: bytes) -> pb.RolloutResult:
        """The result that `pack` made it from. May block. NotFound: it was kept no longer;
        DataLoss: it is none."""
        result = pb.RolloutResult.FromString(value)
        if result.stored:
            result = self._stored(result.stored)
        for sample in result.samples:
            if not len(sample.ids) == len(logprobs(sample)) == len(raw_logprobs(sample)):
                raise DataLoss(
                    f"a rollout of {result.shard_id} has {len(sample.ids)} tokens and "
                    f"{len(logprobs(sample))} log-probabilities: is the shard of this version?"
                )
        return result

    def _stored(self, path: str) -> pb.RolloutResult:
        if not path.startswith(f"{_FOLDER}/"):
            raise DataLoss(f"a rollout names {path[:80]!r}, which is no rollout's place")
        try:
            return pb.RolloutResult.FromString(self._storage.read(path))
        except FileNotFoundError:
            raise NotFound(
                f"a rollout's answers are gone from {self._storage.uri(path)}: they are kept for "
                f"{RESULT_TTL_S / 60:.0f} minutes; shards and trainer must have one store",
                reason="ROLLOUT_GONE",
            ) from None


def logprobs(sample: pb.RolloutSample) -> Sequence[float]:
    """One per id, after temperature; also of a shard from before they were float32."""
    return sample.token_logprobs or sample.logprobs


def raw_logprobs(sample: pb.RolloutSample) -> Sequence[float]:
    """One per id, before temperature."""
    return sample.raw_token_logprobs or sample.raw_logprobs


def check_fits(samples: int, max_tokens: int) -> None:
    """InvalidArgument where answers could not be carried, said before any is sampled."""
    if not 1 <= samples <= MAX_SAMPLES:
        raise InvalidArgument(
            f"{samples} samples of a prompt; shards take 1 to {MAX_SAMPLES}", field="samples"
        )
    if largest(samples, max_tokens) > MAX_RESULT_BYTES:
        raise InvalidArgument(
            f"{samples} answers of {max_tokens} tokens may have "
            f"{largest(samples, max_tokens) >> 20} MiB, {MAX_RESULT_BYTES >> 20} MiB are taken "
            f"through the store: at most {longest(samples)} tokens, or fewer samples",
            field="max_new_tokens",
        )
