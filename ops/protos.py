"""Generate `services/plinth/v1` from `protos/plinth/v1`, or check that it is up to date.

Usage: `python ops/protos.py [--check]`. The generated code is committed: an install needs no
protoc, and a reader finds the messages where they are imported from.
"""

from __future__ import annotations

import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "services" / "plinth" / "v1"
HEADER = '"""Generated from protos/plinth/v1 by `make protos`. Never edit."""\n'


def generate(target: Path) -> None:
    """Write the modules for every proto under `target`/plinth/v1."""
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
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protos: protoc failed")
    (target / "plinth" / "v1" / "__init__.py").write_text(HEADER)


def main() -> None:
    """Regenerate, or with `--check` exit 1 when the committed code differs."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        made = Path(scratch) / "plinth" / "v1"
        names = sorted(p.name for p in made.iterdir())
        if "--check" in sys.argv:
            present = sorted(p.name for p in OUT.iterdir() if p.is_file())
            _, differ, errors = filecmp.cmpfiles(made, OUT, names, shallow=False)
            if differ or errors or present != names:
                raise SystemExit(f"protos: out of date, run `make protos`: {differ + errors}")
            return
        OUT.mkdir(parents=True, exist_ok=True)
        for old in OUT.glob("*_pb2*"):
            old.unlink()
        for name in names:
            (OUT / name).write_bytes((made / name).read_bytes())


if __name__ == "__main__":
    main()
