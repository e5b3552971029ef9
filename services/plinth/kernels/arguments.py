"""What a kernel may be given: type, device, layout, shapes that agree, indices within bounds.

A kernel reads and writes where its arguments say, so each of these is a read or a write outside of
a tensor where it doesn't hold. Layouts: rows may be apart (a slice of a wider matrix), what lies
within a row is side by side. Legend: n rows, d width, h heads, e head width.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_F32 = torch.float32
# What unpacking another number of dimensions raises, and asking a sparse tensor for strides.
# Cheaper than asking first: these checks run some 500 times a step.
_NO_STRIDES = (ValueError, RuntimeError)


class ArgumentError(ValueError):
    """An argument that a kernel can't compute from; `kernel` and `argument` name it."""

    def __init__(self, kernel: str, argument: str, wrong: str) -> None:
        super().__init__(f"kernel {kernel}: {argument} {wrong}")
        self.kernel, self.argument = kernel, argument

    def __reduce__(self) -> tuple[object, ...]:
        wrong = str(self).removeprefix(f"kernel {self.kernel}: {self.argument} ")
        return (type(self), (self.kernel, self.argument, wrong))


def refuse(kernel: str, argument: str, must: str, found: object) -> NoReturn:
    """Raise ArgumentError."""
    if isinstance(found, Tensor):
        shape, strides = list(found.shape), list(found.stride()) if _strided(found) else "none"
        found = f"{found.dtype} {shape} with strides {strides} on {found.device}"
    raise ArgumentError(kernel, argument, f"must be {must}; it is {found}")


def _strided(x: Tensor) -> bool:
    return x.layout is torch.strided


def matrix(kernel: str, name: str, x_nd: Tensor) -> tuple[int, int, int]:
    """Rows, width and the distance of rows of an fp32 matrix on the CPU."""
    try:
        (n, d), (apart, inner) = x_nd.shape, x_nd.stride()
        if x_nd.dtype is _F32 and x_nd.is_cpu and d and (inner == 1 or d == 1):
            return n, d, apart
    except _NO_STRIDES:
        pass
    refuse(kernel, name, "an fp32 matrix [n, d] on the CPU, d > 0, each row contiguous", x_nd)


def heads(kernel: str, name: str, x_nhe: Tensor) -> tuple[int, int, int, int]:
    """Rows, heads, head width and the distance of rows of fp32 heads on the CPU."""
    try:
        (n, h, e), (apart, between, inner) = x_nhe.shape, x_nhe.stride()
        side = h and e and (inner == 1 or e == 1) and (between == e or h == 1)
        if side and x_nhe.dtype is _F32 and x_nhe.is_cpu:
            return n, h, e, apart
    except _NO_STRIDES:
        pass
    refuse(kernel, name, "fp32 [n, h, e] on the CPU, h, e > 0, each row contiguous", x_nhe)


def exact(
    kernel: str, name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype = _F32
) -> Tensor:
    """x, if it is contiguous on the CPU and has this shape and type."""
    if x.dtype is dtype and x.is_cpu and x.shape == shape and _contiguous(x):
        return x
    refuse(kernel, name, f"{dtype} {list(shape)}, contiguous, on the CPU", x)


def _contiguous(x: Tensor) -> bool:
    try:
        return x.is_contiguous()
    except _NO_STRIDES:
        return False


def array(kernel: str, name: str, x: object, shape: tuple[int, ...], dtype: type) -> None:
    """A numpy array that is contiguous and has this shape and type."""
    if not (
        isinstance(x, np.ndarray)
        and x.dtype == dtype
        and x.shape == shape
        and x.flags.c_contiguous
        and x.flags.aligned
    ):
        found = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
        refuse(kernel, name, f"{dtype.__name__} {list(shape)}, contiguous", found)


def temperatures(kernel: str, name: str, x_m: NDArray[np.float64]) -> None:
    """Positive and finite."""
    if not bool(np.all((x_m > 0) & (x_m < np.inf))):
        refuse(kernel, name, "above 0 and finite", x_m.tolist())


def whole_number(kernel: str, name: str, value: object, least: int) -> None:
    """An integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        refuse(kernel, name, f"a whole number of at least {least}", repr(value))


def within(kernel: str, name: str, x: Tensor, end: int) -> None:
    """All of these indices lie in [0, end)."""
    if x.numel():
        low, high = (int(edge) for edge in torch.aminmax(x))
        if low < 0 or high >= end:
            refuse(kernel, name, f"within 0 … {end - 1}", f"{low} … {high}")


def grouped(kernel: str, name: str, h: int, kv_heads: int) -> None:
    """Each KV head serves the same number of query heads."""
    if h % kv_heads:
        refuse(kernel, name, f"of a number of heads that {kv_heads} KV heads divide", h)


def segments(kernel: str, name: str, firsts_bt: Tensor, b: int, t: int) -> None:
    """int32 [B, T]; along a sequence it never falls, and never lies after the token itself."""
    exact(kernel, name, firsts_bt, (b, t), torch.int32)
    if b and t:
        places = torch.arange(t, dtype=torch.int32)
        fine = (firsts_bt >= 0) & (firsts_bt <= places)
        if not bool(fine.all()) or not bool((firsts_bt[:, 1:] >= firsts_bt[:, :-1]).all()):
            refuse(
                kernel, name, "at most each token's own place, and growing along a sequence",
                "not",
            )  # fmt: skip
