"""Compile the CPU kernels, once per source and per machine: `python -m plinth.kernels.build`.

The library holds one copy of every kernel per instruction set; `native` picks at run time what
the processor has, so a build made on one machine runs on another. OpenMP is used under the
library name that torch loads too, so that both share one pool of threads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = (HERE / "cpu.cpp", HERE / "training.cpp")
HEADERS = sorted(HERE.glob("*.h"))
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "base": (),
}
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-Wno-psabi", "-ffp-contract=off")


class BuildError(Exception):
    """No compiler, or the compiler refused; the message holds its words."""


def library() -> Path:
    """Path of the compiled library; compiles it if this source was not compiled here yet.

    `PLINTH_KERNELS` names a prebuilt one (images carry no compiler).
    """
    if prebuilt := os.environ.get("PLINTH_KERNELS"):
        return Path(prebuilt)
    text = b"".join(path.read_bytes() for path in (*HEADERS, *SOURCES))
    stamp = hashlib.sha256(text + repr(FLAGS).encode()).hexdigest()[:16]
    folder = _folder()
    target = folder / f"plinth-kernels-{stamp}.so"
    if not target.exists():
        _compile(target)
    return target


def _folder() -> Path:
    """Beside the package where that may be written (a checkout), else the user's cache."""
    beside = HERE / "_native"
    if os.access(HERE, os.W_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plinth"


def _compile(target: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise BuildError("no C++ compiler: install g++, or set PLINTH_KERNELS to a built library")
    if os.uname().machine not in ("x86_64", "amd64"):
        sets = {"base": INSTRUCTION_SETS["base"]}
    else:
        sets = INSTRUCTION_SETS
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        objects = []
        for name, machine in sets.items():
            for source in SOURCES:
                objects.append(str(Path(scratch) / f"{source.stem}-{name}.o"))
                how = [*FLAGS, *machine, f"-DISA={name}"]
                _run([compiler, *how, "-c", str(source), "-o", objects[-1]])
        made = Path(scratch) / target.name
        _run([compiler, "-shared", "-fopenmp", *objects, "-o", str(made)])
        made.replace(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")


if __name__ == "__main__":
    sys.stdout.write(f"plinth: CPU kernels at {library()}\n")
