"""The code sandbox, attacked: what an answer may try, and what the kernel makes of it."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from patience import PATIENCE_S
from plinth.reward.sandbox import literals
from plinth.reward.sandbox.runner import Limits, Sandbox, SandboxOutcome
from plinth.reward.verifiers import Answer, parse_rule
from plinth.shared.errors import FailedPrecondition

LIMITS = Limits(wall_s=15, cpu_s=5, memory_bytes=512 << 20)
RIGHT = ["assert f() == 42"]


async def run(
    body: str, tests: list[str] | None = None, *, limits: Limits = LIMITS, **more: str
) -> SandboxOutcome:
    """`body` inside of `def f():`."""
    code = "def f():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return await Sandbox(1).run(code, RIGHT if tests is None else tests, limits, **more)


def sides(owner: int) -> list[psutil.Process]:
    """Both processes of each sandbox of this owner: they are told its id, so that they are known
    when it is gone, and others' sandboxes on the machine are not taken for its own."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "plinth.reward.sandbox" in (line := " ".join(process.info["cmdline"] or []))
        and line.endswith(f", {owner})")
    ]


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert sides(os.getpid()) == []
    assert list(tmp_path.glob("plinth-answer-*")) == []


# -- what works ----------------------------------------------------------------------------


async def test_right_and_wrong_answers() -> None:
    code = "def add(a, b):\n    return a + b"
    tests = ["assert add(1, 2) == 3", "assert add('a', b='b') == 'ab'", "assert add(1, 1) == 3"]
    got = await Sandbox(1).run(code, tests, LIMITS)
    assert (got.passed, got.total, got.why) == (2, 3, "AssertionError")
    assert await Sandbox(1).run(code, tests[:2], LIMITS) == SandboxOutcome(2, 2)


async def test_every_literal_goes_there_and_back() -> None:
    values = [
        None, True, 1, -(10**30), 1.5, float("inf"), "é\ud800", b"\x00\xff", 1 + 2j, [1, [2]],
        (1, (2,)), {1, 2}, frozenset({3}), {"a": (1, {2: b"x"}), (1, 2): None}, [], {}, set(),
    ]  # fmt: skip
    got = await Sandbox(1).run(
        "def same(x):\n    return x",
        [f"v = {value!r}\nw = same(v)\nassert w == v and type(w) is type(v)" for value in values
         if value != float("inf")],
        LIMITS,
    )  # fmt: skip
    assert got == SandboxOutcome(len(values) - 1, len(values) - 1)
    for value in values:
        back = literals.decode(literals.encode(value))
        assert back == value
        assert type(back) is type(value)


async def test_errors_of_the_answer_reach_the_tests() -> None:
    test = (
        "try:\n    f()\n    assert False\nexcept KeyError as error:\n    assert 'no' in str(error)"
    )
    assert (await run("raise KeyError('no')", [test])).passed == 1
    assert "NameError" in (await run("return 1", ["g()"])).why
    assert "ValueError: bad" in (await run("raise ValueError('bad')")).why


async def test_setup_and_candidate_as_humaneval_has_them() -> None:
    check = "def check(candidate):\n    assert candidate() == 42\n"
    got = await run("return 42", ["check(candidate)"], setup=check, candidate="f")
    assert got == SandboxOutcome(1, 1)


async def test_the_standard_library_works() -> None:
    body = """
    import bisect, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq
    import itertools, json, math, random, re, statistics, string, threading, typing, zoneinfo
    seen = []
    thread = threading.Thread(target=seen.append, args=(42,))
    thread.start()
    thread.join()
    hashlib.sha256(b"x").hexdigest()
    decimal.Decimal("1.5").sqrt()
    return seen[0]
    """
    assert await run(body) == SandboxOutcome(1, 1)


# -- forging -------------------------------------------------------------------------------

FORGERIES = {
    "prints a verdict": """
        print('{"passed": true, "why": ""}', flush=True)
        import os
        os.write(1, b'{"passed": true, "why": ""}\\n')
        return 0
    """,
    "writes to every file it holds": """
        import os
        for handle in range(256):
            try:
                os.write(handle, b'{"passed": true, "why": ""}\\n')
            except OSError:
                pass
        return 0
    """,
    "ends with success": "import os\nos._exit(0)",
    "exits": "raise SystemExit(0)",
    "equals everything": """
        class Same:
            def __eq__(self, other):
                return True
        return Same()
    """,
    "equals everything, as a number": """
        class Same(int):
            def __eq__(self, other):
                return True
            __hash__ = None
        return Same(0)
    """,
    "looks for its caller": """
        import gc, sys
        frame = sys._getframe()
        while frame:
            for name, value in frame.f_globals.items():
                if 'test' in name or 'verdict' in name:
                    return 42
            frame = frame.f_back
        texts = [o for o in gc.get_objects() if isinstance(o, str)]
        return 42 if any('f() ==' in text for text in texts) else 0
    """,
    "kills its judge": """
        import os, signal
        for pid in range(2, 70000):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        return 0
    """,
}  # fmt: skip


@pytest.mark.parametrize("how", FORGERIES)
async def test_no_verdict_is_forged(how: str) -> None:
    got = await run(FORGERIES[how])
    assert (got.passed, got.total) == (0, 1)
    assert got.why


async def test_builtins_of_the_tests_are_not_the_answers() -> None:
    code = """
def f(x):
    return x + 1000
def abs(x):
    return 0
def all(x):
    return True
def len(x):
    return 3
"""
    tests = ["assert abs(f(1) - 2) < 1", "assert all(f(i) == i for i in range(3))"]
    tests += ["assert len([f(1)]) == 3"]
    got = await Sandbox(1).run(code, tests, LIMITS)
    assert got.passed == 0


async def test_an_error_that_ends_a_loop_quietly_passes_nothing() -> None:
    got = await run("raise StopIteration", ["assert all(map(lambda i: f() == 42, [1, 2]))"])
    assert got.passed == 0


async def test_lies_on_the_wire_are_only_wrong_values() -> None:
    """The answer may write what it likes to its own pipe: it still has to say 42."""
    for line in (b"[]\\n", b"x\\n", b'{"is": "tuple", "of": ["value"]}\\n', b"[" * 5000 + b"\\n"):
        body = f"import os\nfor h in range(3, 32):\n    try: os.write(h, {line!r})\n"
        body = body.replace("\\\\n", "\\n") + "    except OSError: pass\nreturn 0"
        assert (await run(body)).passed == 0


# -- reaching out --------------------------------------------------------------------------


async def refused(body: str) -> str:
    got = await run(body)
    assert got.passed == 0
    assert "Error" in got.why, got
    return got.why


async def test_no_file_is_read_or_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("42")
    readers = [f"open({str(secret)!r}).read()", "open('/etc/passwd').read()"]
    readers += ["open('/proc/self/environ').read()", f"open('/proc/{os.getpid()}/environ').read()"]
    readers += [f"__import__('os').listdir({str(tmp_path)!r})", f"open({__file__!r}).read()"]
    for reader in readers:
        assert "PermissionError" in await refused(f"return {reader}"), reader
    made = tmp_path / "made"
    writers = [f"open({str(made)!r}, 'w')", "open('here', 'w')", "open('/dev/shm/x', 'w')"]
    writers += [f"os.{call}" for call in (
        f"remove({str(secret)!r})", "mkdir('d')", f"rename({str(secret)!r}, 'x')",
        f"chmod({str(secret)!r}, 0o777)", f"truncate({str(secret)!r}, 0)", "rmdir(os.getcwd())",
        f"symlink({str(secret)!r}, 'x')", f"link({str(secret)!r}, 'x')", "memfd_create('x')",
        f"utime({str(secret)!r})",
    )]  # fmt: skip
    for writer in writers:
        assert "PermissionError" in await refused(f"import os\n{writer}\nreturn 42"), writer
    assert not made.exists()
    assert secret.read_text() == "42"


async def test_nothing_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLINTH_CLUSTER_TOKEN", "a secret that is long enough")
    got = await run("import os, sys\nreturn [dict(os.environ), sys.argv]", ["assert f() == 1"])
    assert got.passed == 0
    test = "env, argv = f()\nassert not any('PLINTH' in k or 'secret' in v for k, v in env.items())"
    assert (await run("import os, sys\nreturn [dict(os.environ), sys.argv]", [test])).passed == 1


async def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        body = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nreturn 42"
        assert "PermissionError" in await refused(body)
        for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"):
            body = f"import socket\nsocket.socket(socket.{family}, socket.SOCK_DGRAM)\nreturn 42"
            assert "PermissionError" in await refused(body)
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_no_process_is_started() -> None:
    for body in (
        "import os\nwhile True:\n    os.fork()",
        "import subprocess\nreturn subprocess.run(['/bin/echo'])",
        "import os\nreturn os.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.setsid()",
        "import multiprocessing as m\np = m.Process(target=print)\np.start()\nreturn 42",
    ):
        assert "PermissionError" in await refused(body)
    assert sides(os.getpid()) == []
    assert (await run("import os\nos.system('sleep 100 &')\nreturn 42", ["f()"])).total == 1
    assert sides(os.getpid()) == []


async def test_nobody_else_gets_a_signal() -> None:
    for call in (f"os.kill({os.getpid()}, 0)", f"os.killpg({os.getpgid(0)}, 0)", "os.kill(-1, 0)"):
        assert "PermissionError" in await refused(f"import os\n{call}\nreturn 42")
    limits = f"resource.prlimit({os.getpid()}, resource.RLIMIT_CPU, (1, 1))"
    assert "PermissionError" in await refused(f"import resource\n{limits}\nreturn 42")
    setown = f"fcntl.fcntl(0, 8, {os.getpid()})"  # F_SETOWN: signals by way of a file
    assert "PermissionError" in await refused(f"import fcntl\n{setown}\nreturn 42")


async def test_the_kernels_side_doors_are_shut() -> None:
    # x86_64: ptrace, process_vm_readv, io_uring_setup, bpf, unshare, userfaultfd, keyctl, prctl
    for number in (101, 310, 425, 321, 272, 323, 250, 157):
        body = f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall({number}, 0, 0, 0, 0, 0) == -1
        return ctypes.get_errno()
        """
        assert (await run(body, ["assert f() == 1"])).passed == 1, number


# -- using it up ---------------------------------------------------------------------------


async def test_time_runs_out_though_signals_are_caught() -> None:
    body = """
    import signal
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        try:
            while True: pass
        except BaseException:
            pass
    """
    began = time.monotonic()
    got = await run(body, limits=Limits(1.0, 30, 512 << 20))
    assert (got.passed, got.why) == (0, "it ran for more than 1 s")
    assert time.monotonic() - began < PATIENCE_S
    got = await run("import time\ntime.sleep(100)", limits=Limits(1.0, 30, 512 << 20))
    assert got.why == "it ran for more than 1 s"


async def test_processor_time_runs_out() -> None:
    got = await run("while True: pass", limits=Limits(60, 1, 512 << 20))
    assert (got.passed, got.why) == (0, "AnswerGone: the answer ended its process")


async def test_memory_runs_out() -> None:
    got = await run("x = bytearray(4 << 30)\nreturn 42")
    assert got.why == "MemoryError"
    got = await run("x = []\nwhile True:\n    x.append(bytearray(1 << 20))")
    assert got.passed == 0


async def test_output_without_end_is_nobodys() -> None:
    got = await run("for i in range(2000):\n    print('x' * 100_000)\nreturn 42")
    assert got == SandboxOutcome(1, 1)
    got = await run("return 'x' * (2 << 20)")
    assert "ValueError" in got.why
    deep = "x = []\nfor i in range(100_000):\n    x = [x]\nreturn x"
    assert (await run(deep)).passed == 0


async def test_the_tests_may_print_and_end_too() -> None:
    printed = ["print('{\"passed\": true}')\nassert f() == 1", "assert f() == 42"]
    got = await run("return 42", printed)
    assert (got.passed, got.total) == (1, 2)
    got = await run("return 42", ["import os\nos._exit(0)", "assert f() == 42"])
    assert (got.passed, got.total) == (0, 2)
    assert "ended before their verdict" in got.why


async def test_code_that_is_none() -> None:
    for code in ("def f(:", "\x00", "raise SystemExit", "import os; os._exit(0)", "f = 3", ""):
        got = await Sandbox(1).run(code, RIGHT, LIMITS)
        assert got.passed == 0, code
        assert got.why


def test_where_the_kernel_cannot_lock_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from plinth.reward.sandbox import lockdown

    # What `lock` does when Landlock isn't there: the real refusal, by a kernel that says ENOSYS.
    monkeypatch.setattr(lockdown, "_CREATE_RULESET", 9999)
    child = os.fork()
    if child == 0:
        try:
            lockdown.lock(cpu_s=5, memory_bytes=64 << 30, owner=os.getppid())
        except OSError as error:
            os._exit(7 if "not implemented" in str(error) else 8)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    from plinth.reward.sandbox.runner import _outcome

    with pytest.raises(FailedPrecondition, match="not implemented"):
        _outcome([b'{"refused": "Function not implemented"}'], 1, None)


def test_an_owner_that_dies_takes_them_along(tmp_path: Path) -> None:
    """SIGKILL to the replica: the kernel ends what it had started."""
    import subprocess
    import sys

    body = "def f():\n    import time\n    time.sleep(600)\n"
    script = (
        "import asyncio\nfrom plinth.reward.sandbox.runner import Limits, Sandbox\n"
        f"asyncio.run(Sandbox(1).run({body!r}, ['f()'], Limits(600, 600, 512 << 20)))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + PATIENCE_S
    while len(sides(owner.pid)) != 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    while sides(owner.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (folder,) = tmp_path.glob("plinth-answer-*")
    folder.rmdir()  # empty, as the killed owner left it


async def test_the_rule_scores_all_or_the_share() -> None:
    class Tools:
        run_tests = Sandbox(1).run

    answer = Answer(
        "Here you are:\n```python\ndef f(x):\n    return x * x\n```",
        tests=("assert f(2) == 4", "assert f(3) == 6"),
    )
    for mode, value in (("all", 0.0), ("share", 0.5)):
        rule = parse_rule({"kind": "code_tests", "mode": mode}, "rule")
        got = await rule.judge(answer, Tools())  # type: ignore[arg-type]
        assert got.value == value
        assert got.reason.startswith("1 of 2 tests pass")
