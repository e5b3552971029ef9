"""What `gpu.sh` asks of the machine before it measures anything: `describe DEVICE` or `kernels`.

describe: one JSON line that names device, driver and versions; 1 where the device isn't there.
kernels: the C++ kernels of the CPU, compiled if need be. A GPU's logits are drawn from by one of
them (`plinth.kernels.race`), so a machine without them can't sample at a temperature; 77 then.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from gpu import ROOT, SKIPPED


def describe(device: str) -> dict[str, Any]:
    """Device, driver, versions. Ends the process where torch doesn't see the device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; --device cpu tries the script without one")
    name = platform.processor() or platform.machine()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "bench": "gpu", "machine": name, "device": device,
        "driver": _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda, "torch": torch.__version__,
        "triton": _version("triton"), "transformers": _version("transformers"),
        "python": platform.python_version(), "cores": os.cpu_count(),
        "commit": _answer("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _answer(*command: str) -> str | None:
    """The first line that a command prints; None where it can't be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def compile_kernels() -> int:
    """The exit status; says where they are, or why there are none."""
    from plinth.kernels.build import BuildError, library

    try:
        print(f"CPU kernels: {library().name}")
    except BuildError as error:
        print(error, file=sys.stderr)
        return SKIPPED if "no C++ compiler" in str(error) else 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "kernels":
        sys.exit(compile_kernels())
    print(json.dumps(describe(sys.argv[2])))
