"""Rotary tables: frequencies, powers, cosines and sines, with the same bits on every processor.

Torch's and numpy's functions have variants with other last bits for each instruction set; sums and
products of doubles have none. Results are within 1 unit in the last place of fp32, nearly always
the nearest fp32.
"""

from __future__ import annotations

import decimal
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plinth.models.rope import Rope, RopeScaling

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


def rope_tables(rope: Rope, head_dim: int, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin, [context, features / 2] each (Su et al. 2021).

    Where short sequences turn otherwise than long ones (`RopeScaling.by_length`) both follow one
    another: [2 · context, …], the long ones' rows from `context` on.
    """
    tables = rotary_tables(context, frequencies(rope, head_dim, context))
    if rope.scaling is not None and rope.scaling.by_length:
        long = rotary_tables(context, frequencies(rope, head_dim, context, long=True))
        tables = (torch.cat((tables[0], long[0])), torch.cat((tables[1], long[1])))
    factor = 1.0 if rope.scaling is None else rope.scaling.attention_factor
    return tables if factor == 1.0 else (tables[0] * factor, tables[1] * factor)


def frequencies(rope: Rope, head_dim: int, context: int, *, long: bool = False) -> Tensor:
    """Radians per position, fp32 [features / 2]. long: of sequences longer than the rule's
    original_context."""
    features, scaling = rope.features or head_dim, rope.scaling
    dims = torch.arange(0, features, 2, dtype=torch.int64, device="cpu")
    exponents = dims.float() / features
    if scaling is None:
        return 1.0 / powers(rope.theta, exponents)
    if scaling.kind == "dynamic" and long:
        stretch = scaling.factor * context / scaling.original_context - (scaling.factor - 1)
        base = rope.theta * max(1.0, stretch) ** (features / max(1, features - 2))
        return 1.0 / powers(base, exponents)
    pairs_e = powers(rope.theta, exponents)
    if scaling.kind == "linear":
        return 1.0 / pairs_e / scaling.factor
    if scaling.kind == "longrope":
        given = scaling.long_factors if long else scaling.short_factors
        return 1.0 / (torch.tensor(given, dtype=torch.float32, device="cpu") * pairs_e)
    if scaling.kind == "yarn":
        return _yarn(rope.theta, scaling, features, pairs_e)
    return _llama3(scaling, 1.0 / pairs_e) if scaling.kind == "llama3" else 1.0 / pairs_e


def _llama3(scaling: RopeScaling, plain_e: Tensor) -> Tensor:
    wavelengths = 2 * math.pi / plain_e
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    smooth = (scaling.original_context / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * plain_e / scaling.factor + smooth * plain_e
    scaled = torch.where(wavelengths > low, plain_e / scaling.factor, plain_e)
    return torch.where((wavelengths <= low) & (wavelengths >= high), between, scaled)


def _yarn(theta: float, scaling: RopeScaling, features: int, pairs_e: Tensor) -> Tensor:
    """NTK by parts (Peng et al. 2023, section 3.2): pairs that turn more often than beta_fast
    within the original context are kept, those below beta_slow divided."""

    def pair_of(turns: float) -> float:
        length = scaling.original_context / (turns * 2 * math.pi)
        return features * math.log(length) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, features - 1)
    high = high + 0.001 if low == high else high
    places_e = torch.arange(features // 2, dtype=torch.float32, device="cpu")
    kept_e = 1 - torch.clamp((places_e - low) / (high - low), 0, 1)
    return 1.0 / (scaling.factor * pairs_e) * (1 - kept_e) + 1.0 / pairs_e * kept_e


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
