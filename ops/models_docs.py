"""The table of families in `docs/models.md`, made of their registry: what each opens, and what its
models can do here. `--check` exits 1 where the committed file differs.

Usage: `python ops/models_docs.py [--check]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from plinth.models.adapters.linear_maps import maps_of_a_layer
from plinth.models.families import FAMILIES
from plinth.models.families.family import Family
from plinth.shared.api.enums import words
from plinth.v1 import jobs_pb2 as pb

DOCS = Path(__file__).resolve().parent.parent / "docs" / "models.md"
_BEGIN, _END = "<!-- families: made by ops/models_docs.py -->", "<!-- families: end -->"
_HEAD = (
    "| family (`model_type`) | import HF | import GGUF | begin, tune | serve | LoRA's targets "
    "| speculation |\n"
    "|---|---|---|---|---|---|---|\n"
)


def table(families: Mapping[str, Family]) -> str:
    """One row for each family. Tuning, serving and speculation are the one transformer's, whatever
    the family; `tests/unit/models/test_families.py` and the engine's tests hold them to it."""
    begun = words(pb.ModelFamily)
    rows = []
    for name, family in families.items():
        maps = [f"`{path.rpartition('.')[2]}`" for path in maps_of_a_layer(name)]
        cells = (
            f"`{name}`",
            f"`{family.architecture}`",
            _gguf(family),
            "both" if name in begun else "tune",
            "yes",
            ", ".join(maps),
            "yes",
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    return _HEAD + "".join(rows)


def _gguf(family: Family) -> str:
    form = family.gguf
    if form is None:
        return f"as `{family.gguf_as}`" if family.gguf_as else "no"
    return f"`{form.architecture}`" + (" with experts" if form.experts else "")


def written(document: str, families: Mapping[str, Family]) -> str:
    """The document with the table of today between its two marks."""
    before, found, rest = document.partition(_BEGIN)
    _, closed, after = rest.partition(_END)
    if not found or not closed:
        raise SystemExit(f"plinth: {DOCS} has no {_BEGIN!r} … {_END!r}")
    return f"{before}{_BEGIN}\n{table(families)}{_END}{after}"


def main() -> int:
    """Write the file, or tell whether it is up to date."""
    committed = DOCS.read_text()
    made = written(committed, FAMILIES)
    if "--check" not in sys.argv[1:]:
        DOCS.write_text(made)
        return 0
    if made != committed:
        print(f"plinth: {DOCS} is out of date; run python ops/models_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
