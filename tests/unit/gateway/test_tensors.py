"""Tensors of the Open Inference Protocol: what is written is read, else it is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.gateway.services import tensors
from plinth.oip.v2 import open_inference_pb2 as pb
from plinth.shared.errors import InvalidArgument

KNOWN = {"text": "BYTES", "flag": "BOOL"}


def request(*inputs: tuple[str, str, list[int], list[object]], raw: bool) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest()
    for name, datatype, shape, elements in inputs:
        tensor = made.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw:
            made.raw_input_contents.append(tensors.packed(elements, datatype))
        elif datatype == "BYTES":
            tensor.contents.bytes_contents.extend(elements)
        else:
            tensor.contents.bool_contents.extend(elements)
    return made


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_both_forms_say_the_same(texts: list[bytes], flag: bool, column: bool) -> None:
    shape = [len(texts), 1] if column else [len(texts)]
    inputs = (("text", "BYTES", shape, texts), ("flag", "BOOL", [1], [flag]))
    wanted = {"text": texts, "flag": [flag]}
    assert tensors.read(request(*inputs, raw=True), KNOWN) == wanted
    assert tensors.read(request(*inputs, raw=False), KNOWN) == wanted


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.data())
def test_raw_text_that_is_cut_is_refused(texts: list[bytes], data: st.DataObject) -> None:
    whole = tensors.packed(texts, "BYTES")
    ends = {0}
    for text in texts:
        ends.add(max(ends) + 4 + len(text))
    cut = data.draw(st.integers(0, len(whole)).filter(lambda at: at not in ends))
    asked = request(("text", "BYTES", [len(texts)], texts), raw=True)
    asked.raw_input_contents[0] = whole[:cut]
    with pytest.raises(InvalidArgument, match="ends within an element"):
        tensors.read(asked, KNOWN)


TEXT = ("text", "BYTES", [1], [b"a"])


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request(("other", "BYTES", [1], [b"a"]), raw=True), "inputs.0.name"),
        (request(TEXT, TEXT, raw=True), "inputs.1.name"),
        (request(("flag", "BYTES", [1], [b"a"]), raw=False), "inputs.0.datatype"),
        (request(("text", "BYTES", [2], [b"a"]), raw=True), "inputs.0.shape"),
        (request(("text", "BYTES", [], [b"a"]), raw=False), "inputs.0.shape"),
        (request(("text", "BYTES", [1, 2], [b"a", b"b"]), raw=True), "inputs.0.shape"),
        (request(("text", "BYTES", [-1, 1], [b"a"]), raw=True), "inputs.0.shape"),
        (request(("text", "BYTES", [1], []), raw=False), "inputs.0.shape"),
        (request(("text", "BYTES", [1, 1, 1], [b"a"]), raw=True), "inputs.0.shape"),
    ],
)
def test_what_does_not_add_up_is_named(asked: pb.ModelInferRequest, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        tensors.read(asked, KNOWN)
    assert caught.value.field == field


def test_elements_come_once() -> None:
    both = request(TEXT, raw=True)
    both.inputs[0].contents.bytes_contents.append(b"a")
    with pytest.raises(InvalidArgument, match="raw_input_contents too"):
        tensors.read(both, KNOWN)
    one_of_two = request(TEXT, ("flag", "BOOL", [1], [True]), raw=True)
    del one_of_two.raw_input_contents[1]
    with pytest.raises(InvalidArgument, match="1 entries for 2 inputs"):
        tensors.read(one_of_two, KNOWN)
