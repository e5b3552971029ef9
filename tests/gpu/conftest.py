"""The device of these tests. PLINTH_GPU_TESTS_DEVICE=cpu puts a CPU in the GPU's place, to try the
tests themselves (`ops/bench/gpu.sh --device cpu`)."""

from __future__ import annotations

import os

import pytest
import torch

from plinth.kernels.build import BuildError, library


@pytest.fixture
def cpu_kernels() -> None:
    """The C++ kernels, which draw at a temperature and train in fp32 on a CPU."""
    try:
        library()
    except BuildError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """ "cuda", or what the environment says; a test that asks for it is skipped without one."""
    device = os.environ.get("PLINTH_GPU_TESTS_DEVICE", "cuda")
    if device == "cpu":
        request.getfixturevalue("cpu_kernels")
    elif not torch.cuda.is_available():
        pytest.skip("needs an accelerator")
    return device
