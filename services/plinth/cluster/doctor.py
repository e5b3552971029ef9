"""`plinth doctor`: what could keep a stack from running here, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from plinth.cluster import ports
from plinth.cluster.embedded_redis import server_binary
from plinth.cluster.finding import Finding
from plinth.cluster.layout import Layout
from plinth.cluster.stack import Stack, leftovers
from plinth.shared.errors import PlinthError
from plinth.shared.settings import Settings
from plinth.shared.storage_url import open_storage

GIB = 1 << 30
STACK_BYTES = int(2.2 * GIB)  # a bare stack, beside the weights
DISK_BYTES = 5 * GIB  # a model, a corpus and a few checkpoints
DISTRIBUTION = "plinth-llm"


def examine(settings: Settings) -> list[Finding]:
    """Runs every check; a check that fails to run is a finding itself."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _redis,
        _compiler,
        _cpu,
        _memory,
        _disk,
        _ports,
        _leftovers,
        _data_dir,
        _store,
    )
    return [finding for check in checks for finding in check(settings)]


def _python(_: Settings) -> Iterator[Finding]:
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding(
        "python",
        "ok" if right else "fail",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if right else "use Python 3.11 to 3.13 (make setup PYTHON=python3.11)",
    )


def _packages(_: Settings) -> Iterator[Finding]:
    wanted = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    wrong = []
    for requirement in wanted:
        extra = "cluster" if requirement.marker and "cluster" in str(requirement.marker) else ""
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, wanted {requirement.specifier}")
    found = "; ".join(wrong) or f"all of {len(wanted)} requirements as wanted"
    advice = "run `make setup` again" if wrong else ""
    yield Finding("packages", "fail" if wrong else "ok", found, advice)


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is not None:
        yield Finding("redis", "ok", "PLINTH_REDIS_URL is set; the embedded one is not used")
        return
    try:
        binary = server_binary()
        answer = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except PlinthError as error:
        yield Finding("redis", "fail", error.message, "or set PLINTH_REDIS_URL")
    except (OSError, subprocess.SubprocessError) as error:
        advice = "this machine can't run the packaged binary: set PLINTH_REDIS_URL"
        yield Finding("redis", "fail", str(error), advice)
    else:
        yield Finding("redis", "ok", answer.stdout.strip()[:60])


def _compiler(_: Settings) -> Iterator[Finding]:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    yield Finding(
        "compiler",
        "ok" if found else "warn",
        found or "no C++ compiler",
        "" if found else "install g++ or clang++: the CPU kernels are built with it",
    )


def _cpu(_: Settings) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
    flags: set[str] = set()
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    has = [flag for flag in known if flag in flags]
    vectors = ", ".join(has) or "no vector extensions known"
    slow = platform.machine() == "x86_64" and bool(flags) and "avx2" not in flags
    advice = "without AVX2 the engine is slow: choose a small model" if slow else ""
    few = "one core: training and serving take turns" if (cores or 1) < 2 else ""
    level = "warn" if slow or few else "ok"
    yield Finding("cpu", level, f"{cores} cores; {vectors}", advice or few)


def _memory(settings: Settings) -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    needed = STACK_BYTES + settings.engine.kv_cache_bytes
    enough = available >= needed or Stack(settings).running()
    yield Finding(
        "memory",
        "ok" if enough else "warn",
        f"{available / GIB:.1f} GiB available",
        ""
        if enough
        else f"a stack wants {needed / GIB:.1f} GiB beside the weights: free some, or "
        "lower PLINTH_ENGINE__KV_CACHE_BYTES",
    )


def _disk(settings: Settings) -> Iterator[Finding]:
    there = settings.data_dir
    while not there.exists():
        there = there.parent
    for place, needed in ((there, DISK_BYTES), (Layout.of(settings).ray_dir.parent, GIB // 2)):
        free = shutil.disk_usage(place).free
        enough = free >= needed
        yield Finding(
            f"disk {place}",
            "ok" if enough else "warn",
            f"{free / GIB:.1f} GiB free",
            "" if enough else f"keep {needed / GIB:.1f} GiB free, or use --data elsewhere",
        )
    shm = Path("/dev/shm")  # noqa: S108  (Ray's object store lies there)
    if shm.exists() and (free := shutil.disk_usage(shm).free) < 128 << 20:
        advice = "Ray falls back to the disk; a container wants --shm-size=256m"
        yield Finding("shared memory", "warn", f"{free >> 20} MiB in /dev/shm", advice)


def _ports(settings: Settings) -> Iterator[Finding]:
    if Stack(settings).running():
        state = Stack(settings).state()
        held = f"{state.gateway_port} and {state.gateway_grpc_port}" if state else "?"
        yield Finding("ports", "ok", f"held by the running stack: {held}")
        return
    try:
        rest, grpc = ports.gateway_ports(settings)
    except PlinthError as error:
        yield Finding("ports", "fail", error.message.partition(":")[0], error.message)
    else:
        yield Finding("ports", "ok", f"{rest} and {grpc} are free")


def _leftovers(settings: Settings) -> Iterator[Finding]:
    left = leftovers(settings)
    names = ", ".join(f"{process.name()} ({process.pid})" for process in left[:5])
    yield Finding(
        "leftovers",
        "warn" if left else "ok",
        f"{len(left)} processes of a killed stack: {names}" if left else "none",
        "`plinth down` clears them (so does the next `plinth up`)" if left else "",
    )


def _data_dir(settings: Settings) -> Iterator[Finding]:
    path = settings.data_dir
    there = path
    while not there.exists():
        there = there.parent
    writable = there.is_dir() and os.access(there, os.W_OK)
    yield Finding(
        "data",
        "ok" if writable else "fail",
        f"{path}{'' if path.exists() else ' (will be made)'}",
        "" if writable else f"{there} can't be written: choose another folder with --data",
    )
    # `make_private` leaves what is there as it is: a folder of an older version, or of `mkdir`.
    if path.is_dir() and (mode := path.stat().st_mode & 0o777) & 0o077:
        yield Finding(
            "privacy",
            "warn",
            f"{path} is open to others of this machine (mode {mode:o})",
            f"chmod 700 {path}: logs, conversations and weights lie in it",
        )


def _store(settings: Settings) -> Iterator[Finding]:
    """A bucket is asked; a folder of one's own is looked at with the data directory."""
    if settings.store_url is None:
        return
    try:
        storage = open_storage(settings.store_url)
    except PlinthError as error:
        yield Finding("store", "fail", error.message.partition(";")[0], error.message)
    else:
        yield Finding("store", "ok", f"{storage.url} takes files, and none twice")
