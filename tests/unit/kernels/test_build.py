"""The compiled library: it is this package's, whole, and made once."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plinth.kernels import build
from plinth.kernels.library import SIGNATURES, Kernels, instruction_set

KINDS = {
    "long": ctypes.c_long, "int": ctypes.c_int, "float": ctypes.c_float,
    "uint64_t": ctypes.c_uint64,
}  # fmt: skip


def _declared() -> dict[str, list[type]]:
    """The kinds of the arguments of each function that the C++ sources export."""
    declared = {}
    for source in build.SOURCES:
        text = (build.HERE / source).read_text()
        for name, arguments in re.findall(r"^EXPORT\(void (\w+)\)\(([^)]*)\)", text, re.MULTILINE):
            kinds = []
            for argument in arguments.split(","):
                kind = argument.replace("const ", "").strip().rsplit(" ", 1)[0]
                kinds.append(ctypes.c_void_p if "*" in argument else KINDS[kind])
            assert name not in declared
            declared[name] = kinds
    return declared


def test_what_is_called_is_what_is_declared() -> None:
    declared = _declared()
    assert len(declared) >= 15
    assert {name: list(kinds) for name, kinds in SIGNATURES.items()} == declared


def test_every_source_is_part_of_the_stamp_and_is_compiled() -> None:
    sources = {path.name for path in build.HERE.glob("*.cpp")}
    assert sources == {*build.SOURCES, build.STAMP_SOURCE}


def test_the_stamp_tells_sources_headers_and_flags_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build.stamp.__wrapped__
    for path in (*build.HERE.glob("*.cpp"), *build.HERE.glob("*.h")):
        shutil.copy(path, tmp_path)
    stamps = [made()]
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert made() == stamps[0]
    for change in (
        lambda: (tmp_path / "new.h").write_text(""),
        lambda: (tmp_path / "tiles.h").write_text("int x;"),
        lambda: monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g")),
        lambda: monkeypatch.setitem(build.INSTRUCTION_SETS, "base", ("-msse4.2",)),
        lambda: monkeypatch.setattr(os, "uname", lambda: type("Of", (), {"machine": "x86_63"})),
    ):
        change()
        stamps.append(made())
    assert len(set(stamps)) == len(stamps)


def _other(content: bytes) -> bytes:
    return content.replace(build.stamp().encode(), b"0123456789abcdef")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_other, "stamp 0123456789abcdef"),
        (lambda content: content.replace(b"kernels-stamp:", b"kernels-st@mp:"), "without a stamp"),
        (lambda content: content[:-4096], "cut short"),
        (lambda content: content[:40], "no shared library"),
        (lambda content: b"#!/bin/sh" + content, "no shared library"),
        (lambda content: None, "no file"),
    ],
)
def test_a_prebuilt_library_that_is_not_this_packages_is_refused(
    change: object, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = change(build.library().read_bytes())  # type: ignore[operator]
    prebuilt = tmp_path / "kernels.so"
    if content is not None:
        prebuilt.write_bytes(content)
    monkeypatch.setenv("PLINTH_KERNELS", str(prebuilt))
    with pytest.raises(build.LibraryError) as refused:
        Kernels(instruction_set())
    message = str(refused.value)
    assert found in message
    assert str(prebuilt) in message
    assert f"expected CPU kernels with stamp {build.stamp()}" in message
    assert "python -m plinth.kernels.build" in message


def test_a_prebuilt_library_of_this_package_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prebuilt = shutil.copy(build.library(), tmp_path / "kernels.so")
    monkeypatch.setenv("PLINTH_KERNELS", str(prebuilt))
    assert build.load()._name == str(prebuilt)
    for name in SIGNATURES:
        assert isinstance(getattr(Kernels(instruction_set()), name), ctypes._CFuncPtr)


# A compiler that takes what is compiled already; it says how often it was asked to link.
COMPILER = """#!/bin/sh
case " $* " in *" -shared "*) echo linked >> {log} ;; esac
{first}
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""
PROGRAM = (
    "import sys, pathlib; from plinth.kernels import build; "
    "build._folder = lambda: pathlib.Path(sys.argv[1]); print(build.load()._name)"
)


def _start(folder: Path, log: Path, first: str = "") -> subprocess.Popen[bytes]:
    compiler = folder.parent / f"compiler{len(list(folder.parent.iterdir()))}"
    text = COMPILER.format(log=log, first=first, library=build.library())
    compiler.write_text(text)
    compiler.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "PLINTH_KERNELS"}
    environment |= {"CXX": str(compiler), "PYTHONPATH": str(build.HERE.parents[1])}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def test_of_processes_that_start_together_one_compiles(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    started = [_start(folder, log) for _ in range(4)]
    loaded = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert loaded == {f"{folder}/plinth-kernels-{build.stamp()}.so\n".encode()}
    assert log.read_text() == "linked\n"


def test_after_a_kill_in_the_middle_it_is_compiled_whole(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    killed = _start(folder, log, first="kill -9 $PPID; exit 1")
    killed.communicate()
    assert killed.returncode == -9
    assert [path.suffix for path in folder.iterdir() if path.is_dir()] == [".making"]
    again = _start(folder, log)
    assert again.communicate()[0]
    assert again.returncode == 0
    assert sorted(path.suffix for path in folder.iterdir()) == [".lock", ".so"]


def test_a_cached_library_that_was_cut_short_is_compiled_again(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    folder.mkdir()
    whole = build.library().read_bytes()
    cached = folder / f"plinth-kernels-{build.stamp()}.so"
    cached.write_bytes(whole[: len(whole) // 2])
    again = _start(folder, log)
    again.communicate()
    assert again.returncode == 0
    assert cached.read_bytes() == whole
