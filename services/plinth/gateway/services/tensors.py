"""Tensors of the Open Inference Protocol, as far as text needs them: BYTES, BOOL and UINT32.

Elements come in one of two forms: in the list of their type, or raw, little-endian in one string of
bytes per tensor, where each of BYTES stands behind its length. What comes raw is answered raw.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from plinth.oip.v2 import open_inference_pb2 as pb
from plinth.shared.errors import InvalidArgument

_LISTS = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "UINT32": "uint_contents"}
_LENGTH_BYTES = 4
_SHOWN = 64


def read(request: pb.ModelInferRequest, known: Mapping[str, str]) -> dict[str, list[Any]]:
    """The inputs' elements by name: bytes and bools. known: the inputs that there are, with their
    types. InvalidArgument for any other, and for one that is not what its shape says."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise _wrong(
            "raw_input_contents",
            f"has {len(raw)} entries for {len(request.inputs)} inputs; one each is needed",
        )
    found: dict[str, list[Any]] = {}
    for at, tensor in enumerate(request.inputs):
        where = f"inputs.{at}"
        datatype = known.get(tensor.name)
        if datatype is None:
            raise _wrong(
                f"{where}.name", f"{tensor.name[:_SHOWN]!r} is no input; {', '.join(known)} are"
            )
        if tensor.name in found:
            raise _wrong(f"{where}.name", f"{tensor.name!r} comes twice")
        if tensor.datatype != datatype:
            raise _wrong(
                f"{where}.datatype",
                f"{tensor.name} is {datatype}, not {tensor.datatype[:_SHOWN]!r}",
            )
        if raw:
            if tensor.HasField("contents"):
                raise _wrong(f"{where}.contents", "is given, and raw_input_contents too")
            elements = _unpacked(raw[at], datatype, f"raw_input_contents.{at}")
        else:
            elements = list(getattr(tensor.contents, _LISTS[datatype]))
        _check_shape(tensor.shape, len(elements), f"{where}.shape")
        found[tensor.name] = elements
    return found


def output(
    response: pb.ModelInferResponse, name: str, datatype: str, elements: Sequence[Any], *, raw: bool
) -> None:
    """Adds an output to `response`. elements: bytes, bools or ints."""
    tensor = response.outputs.add(name=name, datatype=datatype, shape=[len(elements)])
    if raw:
        response.raw_output_contents.append(packed(elements, datatype))
    else:
        getattr(tensor.contents, _LISTS[datatype]).extend(elements)


def packed(elements: Sequence[Any], datatype: str) -> bytes:
    """Raw."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(one)) + one for one in elements)
    return struct.pack(f"<{len(elements)}{'?' if datatype == 'BOOL' else 'I'}", *elements)


def _unpacked(raw: bytes, datatype: str, where: str) -> list[Any]:
    if datatype == "BOOL":
        return [byte != 0 for byte in raw]
    found, at = [], 0
    while at < len(raw):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(raw[at:begin], "little")
        if begin > len(raw) or at > len(raw):
            raise _wrong(
                where,
                "ends within an element; each is its bytes, behind their number in 4 bytes, "
                "little-endian",
            )
        found.append(raw[begin:at])
    return found


def _check_shape(shape: Sequence[int], count: int, where: str) -> None:
    """One element for each text: [n], or [n, 1] as batches have it."""
    if list(shape) not in ([count], [count, 1]):
        raise _wrong(
            where,
            f"{list(shape[:8])} is not [{count}] or [{count}, 1], which its {count} elements need",
        )


def _wrong(where: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{where}: {what}", reason="TENSOR", field=where)
