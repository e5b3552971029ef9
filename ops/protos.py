"""Generate the modules of the protos under `protos/` and the client's calls (`client_calls.py`), or
check that they are up to date.

Usage: `python ops/protos.py [--check]`. The generated code is committed: an install needs no
protoc, and a reader finds the messages where they are imported from.
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import client_calls
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "services"
# Public; what stages say to one another; KServe's protocol.
PACKAGES = ("plinth/v1", "plinth/internal/v1", "plinth/oip/v2")
CALLS = "plinth/client/calls"


def generate(target: Path) -> None:
    """Write the modules of every proto under `target`."""
    # The plugins are installed beside this interpreter, whether or not its folder is on PATH.
    beside = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join((beside, os.environ.get("PATH", "")))
    sources = sorted(
        str(p.relative_to(ROOT / "protos")) for p in (ROOT / "protos").rglob("*.proto")
    )
    include = str(Path(protoc.__file__).parent / "_proto")
    arguments = [
        "protoc",
        f"-I{ROOT / 'protos'}",
        f"-I{include}",
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet:{target}",
        f"--descriptor_set_out={target / 'descriptors'}",
        "--include_source_info",
        "--include_imports",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protos: protoc failed")
    for package in PACKAGES:
        header = f'"""Generated from protos/{package} by `make protos`. Never edit."""\n'
        (target / package / "__init__.py").write_text(header)
    files = FileDescriptorSet.FromString((target / "descriptors").read_bytes())
    client_calls.write(files, target / CALLS)
    settings = ["--quiet", "--config", str(ROOT / "pyproject.toml"), str(target / CALLS)]
    for words in (["check", "--select=I", "--fix"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *words, *settings], check=True)


def main() -> None:
    """Regenerate, or with `--check` exit 1 when the committed code differs."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        for package in (*PACKAGES, CALLS):
            _install(Path(scratch) / package, OUT / package)


def _install(made: Path, out: Path) -> None:
    names = sorted(p.name for p in made.iterdir() if p.is_file())
    if "--check" in sys.argv:
        present = sorted(p.name for p in out.iterdir() if p.is_file())
        _, differ, errors = filecmp.cmpfiles(made, out, names, shallow=False)
        if differ or errors or present != names:
            raise SystemExit(f"protos: out of date, run `make protos`: {differ + errors}")
        return
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.py*"):
        old.unlink()
    for name in names:
        (out / name).write_bytes((made / name).read_bytes())


if __name__ == "__main__":
    main()
