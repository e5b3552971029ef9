"""Calls every kernel with each argument changed in each way; run by `test_calls` as a program, so
that a crash is seen as one. Prints a JSON line per call: kernel, argument, change, outcome.

Outcomes: "refused" (ArgumentError of that kernel), "same" (what contiguous copies of the very
values give, bit for bit), "differs", or another exception's name.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixtures import random_mixture
from plinth.kernels import calls, experts, gradients, race
from plinth.kernels.arguments import ArgumentError
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.specs import AttentionSpec, StateSpec

Given = dict[str, Any]
MIXTURE = experts.PackedExperts(random_mixture(6, 3, 2, 5))
N, H, K, E, S, BLOCKS = 5, 4, 2, 6, 4, 7
torch.manual_seed(0)


def _cached(keys: Tensor, values: Tensor, **columns: Tensor) -> calls.Tiles:
    cache = KvCache(1, BLOCKS, K, E, S)
    cache.keys[0], cache.values[0] = keys, values
    return calls.Tiles(dataclasses.replace(_batch(), **columns), cache)


def _batch() -> PagedBatch:
    return PagedBatch.build([(2, 3, [4, 1]), (5, 2, [0, 6])], S)


def _write(given: Given) -> list[Tensor]:
    k, v = given.pop("k"), given.pop("v")
    _cached(**given).write(0, k, v)
    return [given["keys"], given["values"]]


def _attend(given: Given) -> list[Tensor]:
    q, kv_heads, window = given.pop("q"), given.pop("kv_heads"), given.pop("window")
    spec = AttentionSpec(0, StateSpec(kv_heads, E, window), E**-0.5, cap=2.0)
    return [_cached(**given).attend(spec, q, 1)]


def _rope(given: Given) -> list[Tensor]:
    x = given.pop("x")
    out = torch.empty(x.shape) if x.dim() else x
    calls.Rotation(**given).turn(x, out, 1.0, 1)
    return [out]


def _rope_in_place(given: Given) -> list[Tensor]:
    x = given.pop("x")
    calls.Rotation(**given).turn(x, x, 1.0, 1)
    return [x]


def _rope_both(given: Given) -> list[Tensor]:
    q, k = given.pop("q"), given.pop("k")
    calls.Rotation(**given).turn_both(q, k, 1)
    return [q, k]


def _pack(given: Given) -> list[Tensor]:
    packed = calls.Packed(11, 6)
    packed.write(given["weight"], given["first"])
    return [calls.linear(torch.eye(6), packed, None, 1)]


def _linear(given: Given) -> list[Tensor]:
    packed = calls.Packed(11, 6)
    packed.write(torch.ones(11, 6), 0)
    packed.add(given["bias"])
    return [calls.linear(given["x"], packed, given["residual"], 1)]


def _experts(given: Given) -> list[Tensor]:
    chosen, weights = given["experts"], given["weights"]
    return [experts.mixture(given["x"], chosen, weights, MIXTURE, "silu", 1)]


def _race(given: Given) -> list[Tensor]:
    return [torch.tensor(part, dtype=torch.float64) for part in race.race(**given, purpose=1)]


def _pools() -> Given:
    return {"keys": torch.randn(BLOCKS, K, E, S), "values": torch.randn(BLOCKS, K, S, E)}


def _columns() -> Given:
    batch = _batch()
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


def _whole() -> Given:
    return {
        "q_nhe": torch.randn(6, H, E), "k_nke": torch.randn(6, K, E), "v_nke": torch.randn(6, K, E),
        "firsts_bt": torch.tensor([[0, 0, 1], [0, 1, 1]], dtype=torch.int32),
    }  # fmt: skip


def _whole_back() -> Given:
    given = _whole()
    out, lse = gradients.attend_whole(**given, b=2, t=3, scale=0.4, cap=2.0, threads=1)
    return given | {"out_nd": out, "lse_bht": lse, "grad_nd": torch.randn(6, H * E)}


def _draws() -> Given:
    numbers = {name: np.arange(3, dtype=np.uint64) for name in ("seeds_m", "samples_m")}
    return {"logits_mv": torch.randn(3, 50), "temperatures_m": np.array([0.5, 1.0, 2.0])} | (
        numbers | {"positions_m": np.arange(3, dtype=np.uint64)}
    )


def _table() -> Given:
    tables = {"cos_pe": torch.randn(9, 3), "sin_pe": torch.randn(9, 3)}
    return {"x": torch.randn(N, H, E), "positions_n": torch.tensor([8, 0, 3, 3, 1])} | tables


def _side_by_side() -> Given:
    q, k = torch.randn(N, H + K, E).split((H, K), 1)
    given = _table()
    del given["x"]
    return given | {"q": q, "k": k}


def _norm() -> Given:
    return {"x_nd": torch.randn(N, 6), "weight_d": torch.randn(6), "bias_d": torch.randn(6)}


def _three(*names: str) -> Given:
    return {name: torch.randn(N, 6) for name in names}


# Kernel: how it is called, with what, and the end of what its index arguments may hold.
KERNELS: dict[str, tuple[Callable[[Given], Any], Callable[[], Given], dict[str, int]]] = {
    "pack": (_pack, lambda: {"weight": torch.randn(5, 6), "first": 6}, {"first": 7}),
    "linear": (
        _linear,
        lambda: _three("x") | {"residual": torch.randn(N, 11), "bias": torch.randn(11)},
        {},
    ),
    "norm": (lambda given: [calls.norm(**given, eps=1e-5, threads=1)], _norm, {}),
    "norm_back": (
        lambda given: gradients.norm_back(**given, eps=1e-5, threads=2),
        lambda: _three("x_nd", "grad_nd") | {"weight_d": torch.randn(6)},
        {},
    ),
    "rope": (_rope, _table, {"positions_n": 9}),
    "rope in place": (_rope_in_place, _table, {"positions_n": 9}),
    "rope both": (_rope_both, _side_by_side, {"positions_n": 9}),
    "activate gated": (
        lambda given: [calls.gate("silu", **given, threads=1)],
        lambda: _three("gate_ni", "up_ni"),
        {},
    ),
    "swiglu_back": (
        lambda given: gradients.swiglu_back(**given, threads=1),
        lambda: _three("gate_ni", "up_ni", "grad_ni"),
        {},
    ),
    "activate": (
        lambda given: [calls.activate("gelu", **given, threads=1)],
        lambda: _three("x_ni"),
        {},
    ),
    "route": (
        lambda given: list(experts.route(**given, normalised=True)),
        lambda: {"logits_nc": torch.randn(N, 7), "chosen": 2},
        {"chosen": 8},
    ),
    "experts": (
        _experts,
        lambda: {
            "x": torch.randn(N, 6),
            "experts": torch.tensor([[0, 2]] * N, dtype=torch.int32),
            "weights": torch.randn(N, 2),
        },
        {"experts": 3},
    ),
    "write_kv": (
        _write,
        lambda: _columns() | _pools() | {"k": torch.randn(N, K, E), "v": torch.randn(N, K, E)},
        {"slots_n": BLOCKS * S, "positions_n": 2 * S, "table_qb": BLOCKS},
    ),
    "attend": (
        _attend,
        lambda: _columns() | _pools() | {"q": torch.randn(N, H, E), "kv_heads": K, "window": 3},
        {
            "table_qb": BLOCKS,
            "firsts_q": N,
            "counts_q": 2 * S,
            "starts_q": 2 * S,
            "kv_heads": 3,
            "window": calls.MAX_WINDOW + 1,
        },
    ),
    "attend_whole": (
        lambda given: gradients.attend_whole(**given, b=2, t=3, scale=0.4, cap=2.0, threads=1),
        _whole,
        {"firsts_bt": 3},
    ),
    "attend_whole_back": (
        lambda given: gradients.attend_whole_back(**given, b=2, t=3, scale=0.4, cap=2.0, threads=1),
        _whole_back,
        {"firsts_bt": 3},
    ),
    "race": (_race, _draws, {}),
    "normalisers": (
        lambda given: [race.normalisers(**given)],
        lambda: {"logits_mv": torch.randn(3, 50)},
        {},
    ),
    "exponentials": (
        lambda given: [torch.from_numpy(race.exponentials(**given))],
        lambda: {"x": np.arange(5.0)},
        {},
    ),
    "logarithms": (
        lambda given: [torch.from_numpy(race.logarithms(**given))],
        lambda: {"x": np.arange(5.0)},
        {},
    ),
}


def tensor_changes(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Those that no kernel may take begin with "bad"."""
    for dtype in (torch.float64, torch.bfloat16, torch.int16, torch.bool):
        yield f"bad type {dtype}", x.to(dtype)
    yield "bad device", x.to("meta")
    yield "bad layout", x.to_sparse()
    yield "bad dimensions", x.unsqueeze(0)
    yield "bad no dimensions", x.flatten()[0]
    yield "bad empty", x[..., :0]
    yield "bad inner stride", torch.stack((x, x), -1)[..., 0]
    yield "bad no inner stride", x[..., :1].expand(x.shape)
    for axis in range(x.dim()):
        yield f"cut {axis}", x.narrow(axis, 0, x.shape[axis] - 1).clone()
        yield f"doubled {axis}", torch.cat((x, x), axis)
        apart = torch.cat((x, x), axis).narrow(axis, 0, x.shape[axis])
        yield f"slice {axis}", apart
    if x.dim() > 1:
        yield "turned", x.transpose(-1, -2)
        yield "turned in memory", x.transpose(-1, -2).contiguous().transpose(-1, -2)
        yield "turned heads", x.transpose(0, 1).contiguous().transpose(0, 1)
        yield "one row for all", x[:1].expand(x.shape)


def array_changes(x: Any) -> Iterator[tuple[str, Any]]:
    for dtype in (np.float32, np.int64, np.int8):
        yield f"bad type {dtype.__name__}", x.astype(dtype)
    yield "bad dimensions", x[None]
    yield "bad inner stride", np.stack((x, x), -1)[..., 0]
    yield "bad kind", x.tolist()
    yield "cut", x[:-1].copy()


def changes(x: Any, end: int | None) -> Iterator[tuple[str, Any]]:
    if isinstance(x, Tensor):
        yield from tensor_changes(x)
        for value in (-1, end, 2**31 - 1, -(2**31)) if end is not None else ():
            for at in (0, -1):
                changed = x.clone()
                changed.view(-1)[at] = value
                yield f"bad value {value} at {at}", changed
    elif isinstance(x, np.ndarray):
        yield from array_changes(x)
    else:
        for value in (-1, 0.5, end, 2**40):
            yield f"bad value {value}", value
    if isinstance(x, np.ndarray) and x.dtype == np.float64 and len(x) == 3:
        for number in (0.0, -1.0, np.nan, np.inf):
            yield f"bad value {number}", np.array([1.0, number, 1.0])


def outcome(kernel: str, name: str, changed: Any) -> str:
    call, make, _ = KERNELS[kernel]
    given = make()
    plain = {
        key: value.clone(memory_format=torch.contiguous_format)
        if isinstance(value, Tensor) and value.device.type == "cpu" and not value.is_sparse
        else value
        for key, value in (given | {name: changed}).items()
    }
    try:
        result = call(given | {name: changed})
    except ArgumentError as refused:
        mine = kernel.split(maxsplit=1)[0]
        assert refused.kernel in {mine, "attend", "write_kv", "linear"}, refused
        assert refused.argument in str(refused)
        return "refused"
    except Exception as error:  # noqa: BLE001 (what it is, is the result)
        return type(error).__name__
    same = zip(result, call(plain), strict=True)
    return "same" if all(torch.equal(a, b) for a, b in same) else "differs"


def main() -> None:
    for kernel, (call, make, ends) in KERNELS.items():
        call(make())
        for name, value in make().items():
            for change, changed in changes(value, ends.get(name)):
                sys.stdout.write(json.dumps([kernel, name, change, ""]) + "\n")
                sys.stdout.flush()
                result = outcome(kernel, name, changed)
                sys.stdout.write(json.dumps([kernel, name, change, result]) + "\n")


if __name__ == "__main__":
    main()
