"""A decoder asked for some rows gives those rows of what it gives when asked for all."""

from __future__ import annotations

import pytest
import torch

from checkpoints import random_gpt2, random_llama, random_mixtral, random_qwen3_moe
from plinth.kernels.native import NativeBackend, PackedWeights
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.training import SdpaBackend
from plinth.models.weights import load_decoder

B, T = 3, 11
ROWS = torch.tensor([2, 10, 11, 32])


MADE = {
    "llama": random_llama, "gpt2": random_gpt2, "mixtral": random_mixtral,
    "qwen3_moe": random_qwen3_moe,
}  # fmt: skip


@pytest.fixture(params=MADE.values(), ids=MADE)
def decoder(request, tmp_path):
    return load_decoder(request.param(tmp_path / "m"))


def test_values_and_gradients_of_chosen_rows(decoder) -> None:
    ids = torch.randint(0, 300, (B * T,), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(T).repeat(B)
    gradients = []
    found = []
    for rows in (None, ROWS):
        decoder.zero_grad()
        hidden = decoder(ids, positions, SdpaBackend(B, T), rows)
        found.append(hidden if rows is not None else hidden[ROWS])
        found[-1].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in decoder.named_parameters()})
    assert found[1].shape == (len(ROWS), decoder.config.hidden)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=2e-3, rtol=1e-4)


def test_paged_rows_are_the_same_bits(decoder) -> None:
    """The kernels' rows stand alone, so leaving some out changes nothing in the others."""
    shape = decoder.config
    ids = torch.arange(5, 5 + T)
    found = []
    for rows in (None, torch.tensor([3, T - 1])):
        cache = KvCache(shape.layers, 4, shape.kv_heads, shape.head_dim, 16)
        batch = PagedBatch.build([(0, T, [0])], 16, torch.device("cpu"))
        with torch.inference_mode():
            backend = NativeBackend(PackedWeights(), cache, batch)
            hidden = decoder(ids, batch.positions_n, backend, rows)
        found.append(hidden if rows is not None else hidden[[3, T - 1]])
    assert torch.equal(found[0], found[1])
