"""The compiled library, typed: which functions it has, and which of their copies is for here.

What calls them is `calls`, which knows what a pointer must point to.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch

from plinth.kernels.build import load

_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_U = ctypes.c_uint64
SIGNATURES = {
    "pack": (_P, _L, _L, _P, _L),
    "linear": (_P, _L, _L, _L, _P, _P, _P, _L, _P, _L, _L, _I),
    "norm": (_P, _L, _L, _L, _P, _P, _F, _P, _I),
    "norm_back": (_P, _P, _L, _L, _P, _F, _P, _P, _I),
    "rope": (_P, _L, _L, _L, _L, _L, _P, _P, _P, _F, _P, _L, _I),
    "activate": (_I, _P, _L, _P, _L, _L, _L, _P, _I),
    "swiglu_back": (_P, _P, _P, _L, _P, _P, _I),
    "route": (_P, _L, _L, _L, _L, _I, _P, _P),
    "experts": (_P, _L, _L, _L, _P, _P, _L, _I, _P, _P, _P, _L, _L, _P, _I),
    "write_kv": (_P, _L, _P, _L, _L, _L, _L, _P, _L, _P, _P),
    "attend": (
        *(_P, _L, _L, _L, _L, _F, _P, _P, _L, _L, _P, _P, _P, _P, _L, _L, _F),
        *(_P, _L, _I),
    ),
    "attend_whole": (_P, _P, _P, _P, _L, _L, _L, _L, _L, _F, _F, _P, _P, _I),
    "attend_whole_back": (
        *(_P, _P, _P, _P, _P, _P, _P, _L, _L, _L, _L, _L, _F, _F),
        *(_P, _P, _P, _I),
    ),
    "race": (_P, _L, _L, _L, _P, _P, _P, _P, _U, _P, _P, _P, _I),
    "normalisers": (_P, _L, _L, _L, _P, _I),
    "exponentials": (_P, _L, _P),
    "logarithms": (_P, _L, _P),
}


def instruction_set() -> str:
    """The widest set that this processor has and the kernels are built for."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(capability, "base")


class Kernels:
    """The library's functions of one instruction set, typed."""

    def __init__(self, instructions: str) -> None:
        handle = load()
        for name, arguments in SIGNATURES.items():
            function = getattr(handle, f"{name}_{instructions}")
            function.argtypes, function.restype = arguments, None
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AttributeError(name)


@functools.cache
def kernels() -> Kernels:
    """Loaded once per process. Raises `build.BuildError` where they cannot be compiled, and
    `build.LibraryError` where `PLINTH_KERNELS` names what is not this package's."""
    return Kernels(instruction_set())
