"""The exponential race over whole vocabularies, on the CPU: who wins, and how likely that was."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plinth.kernels.native import kernels

# Fewer logits are raced sooner than another thread wakes up.
_SHARE = 16_384


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
    rows, vocabulary = logits_mv.shape
    tokens_m = np.empty(rows, np.int64)
    logprobs_m, raw_m = np.empty(rows), np.empty(rows)
    logits_mv = logits_mv if logits_mv.stride(1) == 1 else logits_mv.contiguous()
    kernels().race(
        logits_mv.data_ptr(),
        logits_mv.stride(0),
        rows,
        vocabulary,
        temperatures_m.ctypes.data,
        seeds_m.ctypes.data,
        samples_m.ctypes.data,
        positions_m.ctypes.data,
        purpose,
        tokens_m.ctypes.data,
        logprobs_m.ctypes.data,
        raw_m.ctypes.data,
        min(rows, torch.get_num_threads(), -(-rows * vocabulary // _SHARE)),
    )
    return tokens_m.tolist(), logprobs_m.tolist(), raw_m.tolist()
