"""Between logits and a token, on the CPU: the exponential race over whole vocabularies, what a
token's likelihood is made of, and e^x and ln x in double precision.

The door to these kernels, as `calls` is to those of inference. Torch and numpy would compute the
same with other last bits on each instruction set.
Legend: m rows, v vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plinth.kernels import arguments
from plinth.kernels.arguments import matrix
from plinth.kernels.library import kernels

# Fewer logits are raced sooner than another thread wakes up.
_SHARE = 16_384


def _rows(logits_mv: Tensor) -> Tensor:
    """Each row side by side, as the kernels read them."""
    refused = logits_mv.layout is not torch.strided or logits_mv.dim() != 2
    return logits_mv if refused or logits_mv.stride(1) == 1 else logits_mv.contiguous()


def _shares(rows: int, vocabulary: int) -> int:
    return max(1, min(rows, torch.get_num_threads(), -(-rows * vocabulary // _SHARE)))


def race(
    logits_mv: Tensor,
    temperatures_m: NDArray[np.float64],
    seeds_m: NDArray[np.uint64],
    samples_m: NDArray[np.uint64],
    positions_m: NDArray[np.uint64],
    purpose: int,
) -> tuple[list[int], list[float], list[float]]:
    """A token per row (fp32, on CPU) by the exponential race, with the numbers that
    `engine.noise.uniforms` makes; its log-probability at the temperature, and at 1."""
    logits_mv = _rows(logits_mv)
    m, v, apart = matrix("race", "logits", logits_mv)
    arguments.array("race", "temperature", temperatures_m, (m,), np.float64)
    arguments.temperatures("race", "temperature", temperatures_m)
    arguments.array("race", "seed", seeds_m, (m,), np.uint64)
    arguments.array("race", "sample", samples_m, (m,), np.uint64)
    arguments.array("race", "position", positions_m, (m,), np.uint64)
    arguments.whole_number("race", "purpose", purpose, 0)
    tokens_m = np.empty(m, np.int64)
    logprobs_m, raw_m = np.empty(m), np.empty(m)
    kernels().race(
        *(logits_mv.data_ptr(), apart, m, v, temperatures_m.ctypes.data),
        *(seeds_m.ctypes.data, samples_m.ctypes.data, positions_m.ctypes.data, purpose),
        *(tokens_m.ctypes.data, logprobs_m.ctypes.data, raw_m.ctypes.data, _shares(m, v)),
    )
    return tokens_m.tolist(), logprobs_m.tolist(), raw_m.tolist()


def normalisers(logits_mv: Tensor) -> Tensor:
    """ln Σ e^x of each row (fp32, on CPU), [m] in double precision."""
    logits_mv = _rows(logits_mv)
    m, v, apart = matrix("normalisers", "logits", logits_mv)
    out_m = torch.empty(m, dtype=torch.float64)
    kernels().normalisers(logits_mv.data_ptr(), apart, m, v, out_m.data_ptr(), _shares(m, v))
    return out_m


def exponentials(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x, element by element, within 2 units in the last place; 0 below -708, inf above 709."""
    arguments.array("exponentials", "x", x, (np.size(x),), np.float64)
    out = np.empty_like(x)
    kernels().exponentials(x.ctypes.data, x.size, out.ctypes.data)
    return out


def logarithms(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln x, element by element, within 1 unit in the last place; -inf at 0, NaN below."""
    arguments.array("logarithms", "x", x, (np.size(x),), np.float64)
    out = np.empty_like(x)
    kernels().logarithms(x.ctypes.data, x.size, out.ctypes.data)
    return out


def log_normalisers(logits_mv: Tensor) -> Tensor:
    """ln Σ e^x of each row, [m]: by the kernel for fp32 on the CPU, elsewhere torch's."""
    if logits_mv.is_cpu and logits_mv.dtype == torch.float32:
        return normalisers(logits_mv)
    return logits_mv.logsumexp(-1)
