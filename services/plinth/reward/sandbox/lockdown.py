"""Locks this very process for good, before it runs a stranger's code. Standard library only.

Both doors are shut by the kernel: Landlock (Linux 5.13) for files, seccomp for system calls. Both
need no privilege, and hold in containers. Nothing that runs later in this process, as root or
not, can open them again.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_NOBODY = 65534
_OPEN_FILES = 32

_libc = ctypes.CDLL(None, use_errno=True)


def lock(*, cpu_s: int, memory_bytes: int, owner: int) -> None:
    """Raises OSError when the kernel can't do it; the caller must then end. owner: its pid."""
    readable = _readable()
    _limit(cpu_s, memory_bytes)
    _drop_privileges(readable)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after setuid, which clears it
    if os.getppid() != owner:
        raise OSError("the owner has gone")
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _landlock(readable)
    _seccomp()


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def _limit(cpu_s: int, memory_bytes: int) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def _drop_privileges(readable: Iterable[str]) -> None:
    """Root becomes nobody, where nobody can read the standard library; else loses all its
    capabilities. Others have none to lose."""
    if os.geteuid() != 0:
        return
    os.setgroups([])
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    enough = all(os.access(path, os.R_OK | os.X_OK, effective_ids=True) for path in readable)
    os.seteuid(0)
    os.setegid(0)
    if enough:
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        return
    header = struct.pack("=Ii", 0x20080522, 0)
    _call("syscall", 126 if _machine() == "x86_64" else 91, header, bytes(24))  # capset


def _machine() -> str:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        raise OSError(f"code is run on Linux on x86_64 and aarch64 only, not {machine}")
    return machine


# -- files ---------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# Rights that each ABI knows: files to 12 in 1, refer 13 in 2, truncate 14 in 3, ioctl 15 in 5.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}


def _readable() -> list[str]:
    """The standard library and what its extension modules load."""
    library = [path for path in sys.path if Path(path).is_dir()]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]
    return [*library, *(path for path in system if Path(path).is_dir())]


def _landlock(readable: Iterable[str]) -> None:
    """Reading below `readable`, and nothing else: no writing, no TCP, no signals outside."""
    abi = _call("syscall", _CREATE_RULESET, None, 0, 1)
    files = (1 << _RIGHTS.get(abi, 16)) - 1
    net = 3 if abi >= 4 else 0
    scoped = 3 if abi >= 6 else 0
    attributes = struct.pack("=QQQ", files, net, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = _call("syscall", _CREATE_RULESET, attributes, len(attributes), 0)
    for path in readable:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, handle)
        _call("syscall", _ADD_RULE, rules, 1, rule, 0)
        os.close(handle)
    _call("syscall", _RESTRICT_SELF, rules, 0)
    os.close(rules)


# -- system calls --------------------------------------------------------------------------

_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# (name, number on x86_64, on aarch64): what Python needs to compute, read and sleep. From the
# kernel's asm/unistd_64.h and asm-generic/unistd.h; -1: not there.
_ALLOWED = """
read 0 63  write 1 64  readv 19 65  writev 20 66  pread64 17 67  close 3 57  fstat 5 80
newfstatat 262 79  statx 332 291  lseek 8 62  dup 32 23  dup3 292 24  openat 257 56
faccessat 269 48  faccessat2 439 439  readlinkat 267 78  getcwd 79 17  getdents64 217 61
chdir 80 49  mmap 9 222  munmap 11 215  mprotect 10 226  mremap 25 216  madvise 28 233
brk 12 214  rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139
sigaltstack 131 132  getpid 39 172  getppid 110 173  gettid 186 178  getuid 102 174
geteuid 107 175  getgid 104 176  getegid 108 177  getrusage 98 165  times 100 153
sysinfo 99 179  uname 63 160  getrandom 318 278  clock_gettime 228 113  clock_getres 229 114
clock_nanosleep 230 115  nanosleep 35 101  gettimeofday 96 169  setitimer 38 103
getitimer 36 102  futex 202 98  set_robust_list 273 99  rseq 334 293  sched_yield 24 124
sched_getaffinity 204 123  exit 60 93  exit_group 231 94  restart_syscall 219 128
pipe2 293 59  ppoll 271 73  pselect6 270 72  umask 95 166
open 2 -1  stat 4 -1  lstat 6 -1  access 21 -1  readlink 89 -1  poll 7 -1  select 23 -1
pipe 22 -1  dup2 33 -1  getdents 78 -1  time 201 -1  alarm 37 -1  pause 34 -1  getrlimit 97 163
"""
_KILL = {"x86_64": (62, 234), "aarch64": (129, 131)}  # kill, tgkill: this process only
_CLONE = {"x86_64": 56, "aarch64": 220}  # threads only
_CLONE3 = 435  # its flags are in memory, out of a filter's sight: "unknown", libc then uses clone
_FCNTL = {"x86_64": 72, "aarch64": 25}
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # duplicate, flags; not F_SETOWN, which signals others
_IOCTL = {"x86_64": 16, "aarch64": 29}
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # terminal?, its size, close-on-exec
_PRLIMIT = {"x86_64": 302, "aarch64": 261}

_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_AT, _SECOND_AT = 0, 4, 16, 24


class _Program:
    """A classic BPF program; arguments are compared in their low 32 bits (little-endian)."""

    def __init__(self) -> None:
        self._steps: list[bytes] = []

    def add(self, code: int, value: int, yes: int = 0, no: int = 0) -> None:
        self._steps.append(struct.pack("=HBBI", code, yes, no, value))

    def answer(self, number: int, action: int) -> None:
        """For calls of that number."""
        self.add(_EQUAL, number, 0, 1)
        self.add(_RETURN, action)

    def allow_if(self, number: int, argument_at: int, values: Iterable[int]) -> None:
        """Calls of that number whose argument is one of `values`; all others are refused."""
        wanted = list(values)
        self.add(_EQUAL, number, 0, 2 * len(wanted) + 2)
        self.add(_LOAD, argument_at)
        for value in wanted:
            self.answer(value, _ALLOW)
        self.add(_RETURN, _ERRNO | _EPERM)

    def install(self) -> None:
        code = ctypes.create_string_buffer(b"".join(self._steps))

        class Program(ctypes.Structure):
            _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

        program = Program(len(self._steps), ctypes.addressof(code))
        _call("prctl", _PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


def _seccomp() -> None:
    machine, own = _machine(), os.getpid()
    words = _ALLOWED.split()
    column = 1 if machine == "x86_64" else 2
    program = _Program()
    program.add(_LOAD, _ARCH_AT)
    program.add(_EQUAL, _ARCH[machine], 1, 0)
    program.add(_RETURN, _KILL_PROCESS)
    program.add(_LOAD, _NUMBER_AT)
    for row in zip(words[::3], words[1::3], words[2::3], strict=True):
        if int(row[column]) >= 0:
            program.answer(int(row[column]), _ALLOW)
    for number in _KILL[machine]:
        program.allow_if(number, _FIRST_AT, [own])
    program.allow_if(_PRLIMIT[machine], _FIRST_AT, [0, own])
    program.allow_if(_FCNTL[machine], _SECOND_AT, _FCNTL_COMMANDS)
    program.allow_if(_IOCTL[machine], _SECOND_AT, _IOCTL_COMMANDS)
    program.answer(_CLONE3, _ERRNO | _ENOSYS)
    program.add(_EQUAL, _CLONE[machine], 0, 4)
    program.add(_LOAD, _FIRST_AT)
    program.add(_ANY_BIT, 0x00010000, 0, 1)  # CLONE_THREAD
    program.add(_RETURN, _ALLOW)
    program.add(_RETURN, _ERRNO | _EPERM)
    program.add(_RETURN, _ERRNO | _EPERM)
    program.install()
