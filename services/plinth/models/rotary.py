"""Powers, cosines and sines for rotary positions, with the same bits on every processor.

Torch's and numpy's functions have variants with other last bits for each instruction set; sums and
products of doubles have none. Results are within 1 unit in the last place of fp32, nearly always
the nearest fp32.
"""

from __future__ import annotations

import decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Doubles = NDArray[np.float64]

# π/2 in three parts; a multiple below 2^20 of the first two, of 33 bits, is exact (fdlibm). Beyond,
# a turn of an fp32 angle is coarser than what this loses.
_PARTS = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624871116645580e-21)
# Taylor-like polynomials on ±π/4 (Cephes), in the square of the angle, highest power first.
_SIN = (
    *(1.58962301576546568060e-10, -2.50507477628578072866e-8, 2.75573136213857245213e-6),
    *(-1.98412698295895385996e-4, 8.33333333332211858878e-3, -1.66666666666666307295e-1),
)
_COS = (
    *(-1.13585365213876817300e-11, 2.08757008419747316778e-9, -2.75573141792967388112e-7),
    *(2.48015872888517045348e-5, -1.38888888888730564116e-3, 4.16666666666665929218e-2),
)
_ROWS = 512  # of a table at a time: what is between stays in the cache


def powers(base: float, exponents: Tensor) -> Tensor:
    """base^x for each x, fp32, by decimal arithmetic, which is correctly rounded by definition.
    ValueError unless the base is positive and finite."""
    if not 0 < base < float("inf"):
        raise ValueError(f"the base of powers must be positive and finite, not {base}")
    with decimal.localcontext(prec=40):
        exact = decimal.Decimal(base)
        values = [float(exact ** decimal.Decimal(x)) for x in exponents.tolist()]
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def rotary_tables(context: int, frequencies_e: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency, fp32 [context, e/2]; the angle is rounded to fp32, as
    the models were trained. Where torch makes tensors without values (meta), so are these.
    ValueError for a frequency that isn't finite."""
    device = torch.get_default_device()
    if device.type == "meta":
        shape = (context, len(frequencies_e))
        return torch.empty(shape), torch.empty(shape)
    if not bool(frequencies_e.isfinite().all()):
        raise ValueError("a frequency to be rotated by is not finite")
    frequencies = frequencies_e.numpy()
    cos_pe = np.empty((context, len(frequencies)), np.float32)
    sin_pe = np.empty_like(cos_pe)
    for first in range(0, context, _ROWS):
        rows = slice(first, min(first + _ROWS, context))
        positions = np.arange(rows.start, rows.stop, dtype=np.float32)
        angles = positions[:, None] * frequencies
        cos_pe[rows], sin_pe[rows] = cosine_and_sine(angles.astype(np.float64))
    return torch.from_numpy(cos_pe).to(device), torch.from_numpy(sin_pe).to(device)


def cosine_and_sine(x: Doubles) -> tuple[Doubles, Doubles]:
    """Both, of angles in radians. Additions and products only."""
    turns = np.rint(x * (2 / np.pi))
    rest = ((x - turns * _PARTS[0]) - turns * _PARTS[1]) - turns * _PARTS[2]
    square = rest * rest
    sine = rest + rest * square * _polynomial(_SIN, square)
    cosine = 1.0 - 0.5 * square + square * square * _polynomial(_COS, square)
    quarter = turns.astype(np.int64) & 3
    odd = (quarter & 1) == 1
    first, second = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    return (
        np.where((quarter == 1) | (quarter == 2), -first, first),
        np.where(quarter >= 2, -second, second),
    )


def _polynomial(coefficients: tuple[float, ...], x: Doubles) -> Doubles:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
