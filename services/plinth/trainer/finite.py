"""A look at numbers before they are kept: nothing that is not finite is checkpointed or published.

The loss alone does not say it. It belongs to the weights before a step; an accelerator is asked for
it now and then; and a step of finite gradients can still overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from plinth.shared.errors import FailedPrecondition

ADVICE = "Lower the learning rate"


def require_finite_tensors(tensors: Mapping[str, Tensor], what: str) -> None:
    """FailedPrecondition where a tensor of floats holds NaN or infinity. Waits for the device."""
    _refuse_tensors([name for name, tensor in tensors.items() if not _finite(tensor)], what)


def require_finite_folder(folder: Path, what: str) -> None:
    """The same of all safetensors files below a folder, a tensor at a time."""
    bad = []
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if not _finite(file.get_tensor(name)):
                    bad.append(name)
    _refuse_tensors(bad, what)


def require_finite_figures(figures: Mapping[str, Any], what: str) -> None:
    """FailedPrecondition where a number in it, at any depth, is NaN or infinite."""
    bad = [f"{name} is {value}" for name, value in _numbers(figures) if not math.isfinite(value)]
    if bad:
        raise FailedPrecondition(
            f"{what} are not all finite numbers: {', '.join(bad[:5])}. {ADVICE}",
            reason="FIGURES_NOT_FINITE",
        )


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{name}[{index}]")
    elif isinstance(value, (int, float)):
        yield name, value


def _refuse_tensors(bad: list[str], what: str) -> None:
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise FailedPrecondition(
            f"{what} is not kept: {bad[0]}{more} would hold NaN or infinity; the last good "
            f"checkpoint stays. {ADVICE}",
            reason="WEIGHTS_NOT_FINITE",
        )
