"""The workers of one run, as a group: sums that are the same bits every time.

Gradients are added in the order of ranks, whatever the transport: shards are exchanged all to
all, each worker adds one shard's copies from rank 0 up, and the sums are gathered. That moves as
much data as a ring all-reduce, and neither bucket boundaries nor timing touch the result.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

_BUCKET_ELEMENTS = 16 * 1024 * 1024  # 64 MB of float32
_BEAT_S = 1.0


class Group:
    """`world` workers of which this one is `rank`; one worker needs no process group."""

    def __init__(self, rank: int = 0, world: int = 1, device: str = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over the workers (integers below 2**53 stay exact)."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    def from_first(self, values: Sequence[float]) -> list[float]:
        """The values of rank 0, everywhere."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, src=0)
        return [float(v) for v in tensor.tolist()]

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Around work without sums that one worker does longer than the others: reading a model,
        writing a checkpoint. It may take longer than a sum may wait, since the workers tell one
        another every second that they are alive; all leave the block together.

        A worker that raises in it leaves the group, which the others notice as they do elsewhere.
        """
        if self.world == 1:
            yield
            return
        done, left = threading.Event(), threading.Event()
        broken: list[Exception] = []
        beats = threading.Thread(target=self._beat, args=(done, left, broken), name="group-beats")
        beats.start()
        try:
            yield
        except BaseException:
            left.set()
            raise
        finally:
            done.set()
            beats.join()
        if broken:
            raise broken[0]

    def _beat(self, done: threading.Event, left: threading.Event, broken: list[Exception]) -> None:
        """Sums of who is done, until all are."""
        try:
            while not left.is_set():
                (ended,) = self.sum([done.is_set() and not left.is_set()])
                if ended == self.world:
                    return
                done.wait(_BEAT_S)
        except Exception as error:  # noqa: BLE001 - raised by the thread that waits for this one
            broken.append(error)

    def sum_gradients(self, parameters: Sequence[Parameter]) -> None:
        """Replace each gradient by the sum over the workers, in the order of ranks."""
        if self.world == 1:
            return
        for bucket in _buckets(parameters):
            gradients = [_gradient(p) for p in bucket]
            size = sum(g.numel() for g in gradients)
            padding = -size % self.world
            flat = torch.cat([g.reshape(-1) for g in gradients])
            flat = torch.nn.functional.pad(flat, (0, padding))
            summed = self._sum_in_rank_order(flat)
            offset = 0
            for gradient in gradients:
                part = summed[offset : offset + gradient.numel()]
                gradient.copy_(part.view_as(gradient))
                offset += gradient.numel()

    def _sum_in_rank_order(self, flat: Tensor) -> Tensor:
        copies = torch.empty_like(flat)
        dist.all_to_all_single(copies, flat)
        shards = copies.view(self.world, -1)
        total = shards[0].clone()
        for rank in range(1, self.world):
            total += shards[rank]
        gathered = list(torch.empty_like(flat).chunk(self.world))
        dist.all_gather(gathered, total)
        return torch.cat(gathered)


def _gradient(parameter: Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter took no part in the loss")
    return parameter.grad


def _buckets(parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """Parameters in order, grouped so that a bucket's copy stays small."""
    buckets: list[list[Parameter]] = [[]]
    size = 0
    for parameter in parameters:
        if buckets[-1] and size + parameter.numel() > _BUCKET_ELEMENTS:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
