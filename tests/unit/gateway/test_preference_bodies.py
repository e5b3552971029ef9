"""Every value of every field of a preference body makes a message, or is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.gateway.limits import MAX_TOKENS
from plinth.gateway.preferences import bodies as preference_bodies
from plinth.gateway.preferences.bodies import SampleBody
from plinth.gateway.rest.bodies import validated
from plinth.shared.errors import InvalidArgument

# Of each body, by its name: fields with which it is whole.
WHOLE: dict[str, dict[str, Any]] = {
    "SampleBody": {"model": "m"},
    "TaskBody": {"prompt": "x"},
    "CreateBody": {"tasks": [{"prompt": "x"}]},
    "LeaseBody": {},
    "RenewBody": {"task_id": "t", "fence": 1},
    "ReleaseBody": {"task_id": "t", "fence": 1},
    "JudgementBody": {"task_id": "t", "fence": 1},
    "ModelJudgementsBody": {"model": "m"},
    "DatasetBody": {"name": "d"},
}
FIELDS = [
    (name, field) for name in WHOLE for field in getattr(preference_bodies, name).model_fields
]
EDGES = [n + d for n in (0, 2**15, 2**31, 2**32, 2**53, 2**63, 2**64) for d in (-1, 0, 1)]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([*EDGES, *(-n for n in EDGES), 10**99])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["human", "model", "x" * 300]),
    lambda v: st.lists(v, max_size=9) | st.dictionaries(st.text(max_size=5), v, max_size=3),
)


def test_every_body_is_looked_at() -> None:
    assert set(WHOLE) == {
        name
        for name, one in vars(preference_bodies).items()
        if isinstance(one, type) and hasattr(one, "to_proto")
    }


@given(st.sampled_from(FIELDS), VALUES)
def test_any_value_in_any_field(where: tuple[str, str], value: Any) -> None:
    name, field = where
    try:
        validated(getattr(preference_bodies, name), {**WHOLE[name], field: value}).to_proto()
    except InvalidArgument as error:
        assert error.field.split(".")[0] == field, error


@pytest.mark.parametrize(
    ("name", "field"), FIELDS, ids=[f"{name}.{field}" for name, field in FIELDS]
)
def test_the_edges_of_integers_in_any_field(name: str, field: str) -> None:
    for value in (*EDGES, 10**99):
        try:
            validated(getattr(preference_bodies, name), {**WHOLE[name], field: value}).to_proto()
        except InvalidArgument as error:
            assert error.field.split(".")[0] == field, error


def test_too_many_tokens_are_cut_as_in_a_chat() -> None:
    asked = validated(SampleBody, {"model": "m", "max_tokens": 10**12}).to_proto()
    assert asked.sampling.max_tokens == MAX_TOKENS
