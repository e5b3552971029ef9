import subprocess
import sys

import torch
import torch.multiprocessing as mp
from torch.nn import Parameter

from plinth.trainer.loop.group import Group, _buckets

WORLD = 3


def gradients(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(5, 7, generator=generator) * 10**rank, torch.randn(11, generator=generator)]


def worker(rank, folder):
    import torch.distributed as dist

    store = dist.FileStore(f"{folder}/meet", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    parameters = [Parameter(torch.zeros_like(g)) for g in gradients(rank)]
    for parameter, gradient in zip(parameters, gradients(rank), strict=True):
        parameter.grad = gradient
    group = Group(rank, WORLD)
    group.sum_gradients(parameters)
    # The order of ranks, in bits: ((g0 + g1) + g2).
    for i, parameter in enumerate(parameters):
        wanted = gradients(0)[i] + gradients(1)[i]
        wanted = wanted + gradients(2)[i]
        assert torch.equal(parameter.grad, wanted)
    assert group.sum([rank, 2**40]) == [3.0, 3.0 * 2**40]
    assert group.from_first([7.0 + rank]) == [7.0]
    dist.destroy_process_group()


def test_gradients_are_added_in_the_order_of_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(worker, args=(str(tmp_path),), nprocs=WORLD)


def test_one_worker_is_a_group_too():
    parameter = Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    group = Group()
    group.sum_gradients([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert group.sum([1.5]) == [1.5]


def test_buckets_keep_the_order_and_split_the_load(monkeypatch):
    monkeypatch.setattr("plinth.trainer.loop.group._BUCKET_ELEMENTS", 10)
    parameters = [Parameter(torch.zeros(n)) for n in (4, 6, 1, 30, 2)]
    assert [[p.numel() for p in b] for b in _buckets(parameters)] == [[4, 6], [1], [30], [2]]


def test_the_loop_needs_neither_ray_nor_redis_nor_grpc():
    code = (
        "import sys, plinth.trainer.loop\n"
        "bad = {'ray', 'redis', 'grpc'} & {name.split('.')[0] for name in sys.modules}\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
