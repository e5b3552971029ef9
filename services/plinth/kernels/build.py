"""Compile the CPU kernels, once per source and per machine: `python -m plinth.kernels.build`.

The library holds one copy of every kernel per instruction set; `native` picks at run time what
the processor has, so a build made on one machine runs on another of its kind, and gives the same
bits (`fma.h`). OpenMP is used under the library name that torch loads too, so that both share
one pool of threads. A library carries the stamp of what it was made of, and is refused by a
package that is made of something else. Imports nothing but the standard library: an image's
kernels are built where there is no torch.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("cpu.cpp", "experts.cpp", "sampling.cpp", "training.cpp")
STAMP_SOURCE = "stamp.cpp"  # compiled once, not per instruction set
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "base": (),
}
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-Wno-psabi"),
    "-ffp-contract=off",  # see fma.h
)


class BuildError(Exception):
    """No compiler, or the compiler refused; the message holds its words."""


class LibraryError(BuildError):
    """What `PLINTH_KERNELS` names is not this package's library. Nobody may do without it then:
    somebody said that it is there."""


@functools.cache
def stamp() -> str:
    """What a library of this package is made of: sources, headers, flags and machine type.

    The declarations of the kernels are part of the sources, so a library with this stamp has the
    arguments that `signatures` says (a test compares the two).
    """
    made_of = hashlib.sha256(repr((FLAGS, _instruction_sets(), os.uname().machine)).encode())
    for path in sorted((*HERE.glob("*.h"), *HERE.glob("*.cpp"))):
        made_of.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return made_of.hexdigest()[:16]


def _instruction_sets() -> dict[str, tuple[str, ...]]:
    if os.uname().machine in ("x86_64", "amd64"):
        return INSTRUCTION_SETS
    return {"base": INSTRUCTION_SETS["base"]}


def library() -> Path:
    """Path of the compiled library; compiles it if this source was not compiled here yet.

    `PLINTH_KERNELS` names a prebuilt one (images carry no compiler); nothing is compiled then.
    """
    if prebuilt := os.environ.get("PLINTH_KERNELS"):
        return Path(prebuilt)
    target = _folder() / f"plinth-kernels-{stamp()}.so"
    if not target.exists():
        _build(target)
    return target


def load() -> ctypes.CDLL:
    """The library, of which it is known that it is this package's.

    Raises LibraryError for a prebuilt one that is missing, broken or another package's. One in the
    cache that is broken (a disk that was full, a power cut) is compiled again.
    """
    path = library()
    fault = _fault(path)
    if fault and os.environ.get("PLINTH_KERNELS"):
        raise LibraryError(
            f"PLINTH_KERNELS={path}: expected CPU kernels with stamp {stamp()}, found {fault}; "
            "build them with `python -m plinth.kernels.build` from this package's sources, or "
            "unset PLINTH_KERNELS where there is a compiler"
        )
    if fault:
        _build(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(
            f"{path}: these are CPU kernels of this package, yet they do not load: {error}"
        ) from error


def _fault(path: Path) -> str:
    """What is wrong with the library, "" if nothing. Reads the file, so that nothing of one that
    is cut short or somebody else's is ever run."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "no file"
    except OSError as error:
        return f"what cannot be read ({error})"
    if len(content) < 64 or content[:5] != b"\x7fELF\x02":
        return "no shared library"
    (sections,) = struct.unpack_from("<Q", content, 40)  # of an ELF file, the table at its end
    size, count = struct.unpack_from("<HH", content, 58)
    if sections + size * count > len(content):
        return f"a library that is cut short at {len(content)} bytes"
    found = re.search(rb"plinth-kernels-stamp:([0-9a-f]+)", content)
    if found is None:
        return "a library without a stamp"
    return "" if found[1].decode() == stamp() else f"stamp {found[1].decode()}"


def _folder() -> Path:
    """Beside the package where that may be written (a checkout), else the user's cache."""
    beside = HERE / "_native"
    if os.access(HERE, os.W_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plinth"


def _build(target: Path) -> None:
    """One process compiles; others that want the same wait for it."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise BuildError("no C++ compiler: install g++, or set PLINTH_KERNELS to a built library")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        if not _fault(target):
            return
        for left in target.parent.glob(f"{target.stem}.*.making"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f"{target.stem}.", suffix=".making"
        ) as scratch:
            made = _compile(compiler, Path(scratch))
            with made.open("rb") as written:
                os.fsync(written.fileno())
            made.replace(target)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of this library; a killed holder's is free."""
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, scratch: Path) -> Path:
    """The library, in `scratch`."""
    objects = [str(scratch / "stamp.o")]
    define = f'-DPLINTH_STAMP="{stamp()}"'
    _run([compiler, *FLAGS, define, "-c", str(HERE / STAMP_SOURCE), "-o", objects[0]])
    for name, machine in _instruction_sets().items():
        for source in SOURCES:
            objects.append(str(scratch / f"{Path(source).stem}-{name}.o"))
            how = [*FLAGS, *machine, f"-DISA={name}"]
            _run([compiler, *how, "-c", str(HERE / source), "-o", objects[-1]])
    made = scratch / "made.so"
    _run([compiler, "-shared", "-fopenmp", *objects, "-o", str(made)])
    return made


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")


if __name__ == "__main__":
    load()
    sys.stdout.write(f"plinth: CPU kernels at {library()}\n")
