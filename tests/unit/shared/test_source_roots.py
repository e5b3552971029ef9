"""What a request may name of a stage's own files: held against a statement of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.cluster.supervisor import source_roots
from plinth.shared.errors import InvalidArgument, PermissionDenied, PlinthError
from plinth.shared.settings import load_settings
from plinth.shared.settings_values import spelled, variable
from plinth.shared.source_roots import SourceRoots


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host with an open folder, a closed one, and links that lead out of one into the other."""
    host = tmp_path_factory.mktemp("host").resolve()
    for folder in ("open/a/.hidden", "open/.ssh", "open/data/secrets", "opened", "closed/a"):
        (host / folder).mkdir(parents=True)
    for file in ("open/a/x.txt", "open/.ssh/id", "open/data/secrets/api-key", "closed/a/x.txt"):
        (host / file).write_text("x")
    (host / "open/out").symlink_to(host / "closed")
    (host / "open/a/file").symlink_to(host / "closed/a/x.txt")
    (host / "open/chain").symlink_to("out/a")
    (host / "open/in").symlink_to("a")
    (host / "open/loop").symlink_to("loop")
    (host / "closed/in").symlink_to(host / "open/a")
    (host / "root").symlink_to(host / "open")
    return host


def roots(host: Path) -> SourceRoots:
    return SourceRoots([host / "root"], closed=host / "open" / "data")


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "/a/x.txt", "/in/x.txt", "/a/../a", "//a/", "/./a/.", "/none/of/it"]
)
@pytest.mark.parametrize("root", ["open", "root"])
def test_what_lies_in_a_root_is_open(host: Path, root: str, path: str) -> None:
    found = roots(host).check(f"{host}/{root}{path}", field="f")
    assert found == Path(os.path.realpath(f"{host}/open{path}"))


@pytest.mark.parametrize(
    "path",
    [
        *("/closed", "/closed/a/x.txt", "/closed/none", "/none", "/opened", "", "/"),
        *("/open/..", "/open/../closed/a", "/open/a/../../closed", "/open/a/../../../etc/passwd"),
        *("/open/out", "/open/out/a/x.txt", "/open/a/file", "/open/chain/x.txt"),
        *("/open/out/../closed/a", "/open/none/../../closed"),
        *("/open/.ssh", "/open/.ssh/id", "/open/a/.hidden/x", "/open/a/../.ssh/id"),
        *("/open/data", "/open/data/secrets/api-key", "/root/data/none"),
    ],
)
def test_what_does_not_is_refused_and_nobody_learns_whether_it_exists(
    host: Path, path: str
) -> None:
    with pytest.raises(PermissionDenied, match="source_roots") as caught:
        roots(host).check(f"{host}{path}", field="corpus_dir")
    assert caught.value.message.startswith("corpus_dir: ")
    assert "root" in path or str(host / "root") not in caught.value.message


@pytest.mark.parametrize(
    "path",
    [
        *("texts", "./texts", "../texts", "~", "~/texts", "~root/.ssh", "", " /etc", "\0", "/a\0b"),
        *("file:///etc/passwd", "file:/etc/passwd", "FILE:///etc", "s3://bucket/texts"),
        *("http://127.0.0.1:8080/", "C:\\texts"),
    ],
)
def test_only_an_absolute_path_is_a_path(host: Path, path: str) -> None:
    with pytest.raises(InvalidArgument, match="no absolute path"):
        SourceRoots([Path("/")]).check(path, field="f")


def test_without_roots_nothing_is_open(host: Path) -> None:
    with pytest.raises(PermissionDenied, match="now none"):
        SourceRoots(()).check(host / "open", field="f")


@pytest.mark.parametrize("how", ["variable", "setting"])
@pytest.mark.parametrize("path", ["closed/a", "open/.ssh", "open/data/secrets", "open/a/.hidden"])
def test_a_folder_that_is_closed_is_opened_as_the_refusal_says(
    host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, how: str
) -> None:
    data, wanted = host / "open" / "data", host / path
    monkeypatch.setenv("PLINTH_SOURCE_ROOTS", str(host / "open"))
    with pytest.raises(PermissionDenied) as caught:
        SourceRoots.of(load_settings(data_dir=data)).check(wanted, field="corpus_dir")
    said = re.search(r"by the setting (\w+), or (\w+)=/FOLDER(.)/ANOTHER", caught.value.message)
    assert said is not None
    setting, name, between = said.groups()
    opened = [str(host / "opened"), str(wanted)]
    if how == "variable":
        monkeypatch.setenv(name, between.join(opened))
        settings = load_settings(data_dir=data)
    else:
        monkeypatch.delenv("PLINTH_SOURCE_ROOTS")
        settings = load_settings(data_dir=data, **{setting: opened})
    assert SourceRoots.of(settings).check(wanted, field="corpus_dir") == wanted
    with pytest.raises(PermissionDenied):  # "all that are to be open"
        SourceRoots.of(settings).check(host / "open" / "a" / "x.txt", field="corpus_dir")


PARTS = ["open", "root", "closed", "a", "out", "in", "chain", "file", "loop", ".ssh", "x.txt"]


@given(parts=st.lists(st.sampled_from([*PARTS, "..", ".", "data", "none"]), max_size=7))
def test_no_path_gets_out(host: Path, parts: list[str]) -> None:
    """What is let through lies in the root, as the kernel sees it: opened, and asked where."""
    path = "/".join([str(host), *parts])
    try:
        found = roots(host).check(path, field="f")
    except PlinthError:
        return
    try:
        descriptor = os.open(path, os.O_PATH)
    except OSError:  # (nothing is there, a loop, or a file that is taken for a folder)
        assert found.is_relative_to(host / "open")
        return
    truly = Path(f"/proc/self/fd/{descriptor}").readlink()
    os.close(descriptor)
    assert truly == found
    assert truly.is_relative_to(host / "open")
    assert not {".ssh", "data"} & set(truly.relative_to(host / "open").parts)


def test_a_laptops_stack_opens_the_home_and_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    assert source_roots(load_settings()) == (home, work)
    assert source_roots(load_settings(source_roots=[])) == ()
    assert source_roots(load_settings(ray_address="10.0.0.1:6379")) == ()  # a cluster
    monkeypatch.chdir("/")
    assert source_roots(load_settings()) == (home,)
    for data in (work, tmp_path / "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(work)
        for inside in (work, work / "secrets"):  # "cd" there, then `plinth up --data .`
            inside.mkdir(exist_ok=True)
            monkeypatch.chdir(inside)
            assert source_roots(load_settings(data_dir=data)) == (home,)


def test_roots_come_from_a_variable_a_file_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLINTH_SOURCE_ROOTS", "/a:/b c:~/d")
    given = load_settings(data_dir=tmp_path)
    assert given.source_roots == (Path("/a"), Path("/b c"), Path("~/d").expanduser())
    monkeypatch.setenv(variable("source_roots"), spelled(given.source_roots))
    assert load_settings(data_dir=tmp_path).source_roots == given.source_roots
    monkeypatch.setenv("PLINTH_SOURCE_ROOTS", "")
    assert load_settings(data_dir=tmp_path).source_roots == ()
    monkeypatch.delenv("PLINTH_SOURCE_ROOTS")
    assert load_settings(data_dir=tmp_path).source_roots is None
    (tmp_path / "plinth.yaml").write_text("source_roots: [/a, /b]\n")
    assert load_settings(data_dir=tmp_path).source_roots == (Path("/a"), Path("/b"))
    with pytest.raises(InvalidArgument, match=r"source_roots: 'texts' is no absolute path"):
        load_settings(source_roots=["texts"])


@pytest.mark.parametrize("name", ["y" * 256, "é" * 200, f"a/{'z' * 300}/b"])
def test_a_name_that_no_file_can_have_is_said_and_no_crash(host: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"f: .* can't be read: File name too long"):
        roots(host).check(f"{host}/open/{name}", field="f")
    with pytest.raises(PermissionDenied):
        roots(host).check(f"{host}/closed/{name}", field="f")


def test_nul_in_a_path_is_called_by_its_name(host: Path) -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        roots(host).check(f"{host}/open/a\0b", field="f")
