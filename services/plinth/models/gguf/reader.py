"""The `gguf` package's reader with a file's word checked: sizes, types of tensors, byte order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from plinth.shared.errors import DataLoss, InvalidArgument, NotFound

# K-quant files hold Q5_0, Q5_1, Q8_0 and IQ4_NL where a row is no multiple of 256.
READABLE = (
    "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL".split()  # noqa: SIM905
)


class _CheckedReader(gguf.GGUFReader):  # type: ignore[misc]
    """The package's reader, which takes a file at its word, with the word checked.

    Past the end of the file numpy's slices are silently empty: a cut-off file then fails somewhere
    without saying where, and a hostile one (an array said to hold 2**60 numbers) never ends.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise DataLoss(f"the header says {end:,} bytes, the file ends at {len(self.data):,}")
        return super()._get(offset, dtype, count, override_order)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        for field in fields:
            _, name_bytes, _, dims, raw_type, offset = field.parts
            name = bytes(name_bytes).decode("utf-8")
            try:
                kind = gguf.GGMLQuantizationType(int(raw_type[0]))
            except ValueError as error:
                raise InvalidArgument(
                    f"tensor {name!r} has the unknown type {int(raw_type[0])}"
                ) from error
            if kind.name not in READABLE:
                raise InvalidArgument(
                    f"tensor {name!r} is stored as {kind.name}, which cannot be read; "
                    f"these can: {', '.join(READABLE)}"
                )
            block, size = gguf.GGML_QUANT_SIZES[kind]
            elements = int(np.prod(dims, dtype=object))
            end = start_offs + int(offset[0]) + elements // block * size
            if end > len(self.data):
                raise DataLoss(
                    f"cut off: tensor {name!r} ends at byte {end:,}, the file at {len(self.data):,}"
                )
        super()._build_tensors(start_offs, fields)


def open_reader(path: Path) -> Any:
    """A reader of `path`. Raises NotFound, InvalidArgument (unknown types), DataLoss (cut off)."""
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    if path.stat().st_size < 24:
        raise DataLoss(f"{path}: cut off: {path.stat().st_size} bytes hold no GGUF header")
    try:
        reader = _CheckedReader(path)
    except (DataLoss, InvalidArgument) as error:
        raise type(error)(f"{path}: {error.message}", reason=error.reason) from error
    except (ValueError, KeyError, IndexError, OverflowError, TypeError) as error:
        raise InvalidArgument(f"{path}: not a GGUF file that can be read ({error})") from error
    if reader.byte_order != "I":
        raise InvalidArgument(f"{path}: written for a machine of the other byte order")
    return reader
