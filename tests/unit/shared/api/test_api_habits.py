"""Resource names, pages, filters, masks, etags, enums: what a request says and what it is told."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from plinth.coordinator.run_messages import RUN_FILTERS
from plinth.shared.api.enums import check_enums, number, word, words
from plinth.shared.api.etags import check_etag, etag_of
from plinth.shared.api.field_masks import updated
from plinth.shared.api.filters import Field, Filters
from plinth.shared.api.owners import check_owner, owner_of
from plinth.shared.api.paging import Pages
from plinth.shared.api.resource_names import Pattern
from plinth.shared.api.times import duration, seconds, timestamp, unix_ms
from plinth.shared.errors import Aborted, InvalidArgument, PermissionDenied
from plinth.shared.identity import SYSTEM, Principal
from plinth.trainer.job_messages import JOB_FILTERS
from plinth.v1 import generation_pb2, jobs_pb2, runs_pb2, sampling_pb2

from google.longrunning import operations_pb2  # isort: skip  any list with page_size and page_token

RUN = Pattern("runs/{run}")
ITEM = Pattern("queues/{queue}/items/{item=**}")
TASK = Pattern("collections/{collection}/tasks/{task}")


def asked(token: str = "", size: int = 0, of: str = "") -> operations_pb2.ListOperationsRequest:
    return operations_pb2.ListOperationsRequest(page_token=token, page_size=size, filter=of)


def test_names_go_there_and_back() -> None:
    assert RUN.id(RUN.name("nightly-7")) == "nightly-7"
    assert TASK.ids(TASK.name("default", "t.1")) == ("default", "t.1")
    assert ITEM.ids(ITEM.name("q", "team/job-1")) == ("q", "team/job-1")


@pytest.mark.parametrize("name", ["", "nightly", "runs/", "runs/a/b", "jobs/a", "runs/a b"])
def test_other_names_are_told_what_they_have_to_be(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"'runs/\{run\}'") as caught:
        RUN.id(name, "run.name")
    assert (caught.value.reason, caught.value.field) == ("RESOURCE_NAME", "run.name")


@pytest.mark.parametrize("name", ["queues/q/items/", "queues/a/b/items/i", "queues/q/items/a b"])
def test_only_the_last_id_has_slashes(name: str) -> None:
    with pytest.raises(InvalidArgument):
        ITEM.ids(name)


@given(st.text(max_size=300))
def test_a_token_is_its_lists_own(position: str) -> None:
    pages = Pages("a secret")
    token = pages.token(asked(of="a"), position)
    assert pages.position(asked(token, size=9, of="a")) == position
    for pages_, request in (
        (pages, asked(token, of="b")),
        (pages, operations_pb2.ListOperationsRequest(page_token=token, name="a", filter="a")),
        (Pages("another"), asked(token, of="a")),
    ):
        with pytest.raises(InvalidArgument, match="not of this list"):
            pages_.position(request)


@given(st.text(max_size=60))
def test_a_forged_token_is_refused(token: str) -> None:
    if token:
        with pytest.raises(InvalidArgument, match="not of this list"):
            Pages("a secret").position(asked(token))


def test_sizes_of_pages() -> None:
    pages = Pages("a secret", default=5, most=10)
    assert [pages.size(asked(size=n)) for n in (0, 1, 10, 11)] == [5, 1, 10, 10]
    with pytest.raises(InvalidArgument, match="page_size"):
        pages.size(asked(size=-1))


THINGS = [
    {"name": "chat", "state": "RUNNING", "version": 2, "day": 1, "tags": ["prod"]},
    {"name": "chat-small", "state": "FAILED", "version": 10, "day": 2, "tags": []},
    {"name": 'say "hi"', "state": "RUNNING", "version": 3, "day": 3, "tags": ["prod", "best"]},
]
FILTERS = Filters(
    {
        "name": Field(lambda one: one["name"], str),
        "state": Field(lambda one: one["state"], str, ("RUNNING", "FAILED")),
        "version": Field(lambda one: one["version"], int),
        "create_time": Field(lambda one: datetime(2026, 11, one["day"], tzinfo=UTC), datetime),
        "aliases": Field(lambda one: one["tags"], list),
    }
)


@pytest.mark.parametrize(
    "text, days",
    [
        ("", [1, 2, 3]),
        ("state = RUNNING", [1, 3]),
        ("state != RUNNING", [2]),
        ('name = "chat*"', [1, 2]),
        ('name != "chat*"', [3]),
        ("name=chat", [1]),
        (r'name = "say \"hi\""', [3]),
        ("version > 2 AND version<=10", [2, 3]),
        ("version > 9", [2]),
        ('create_time >= "2026-11-02T00:00:00Z"', [2, 3]),
        ("create_time < 2026-11-02", [1]),
        ("aliases:prod AND aliases:best", [3]),
    ],
)
def test_filters(text: str, days: list[int]) -> None:
    meant = FILTERS.parse(text)
    assert [one["day"] for one in THINGS if meant(one)] == days


@pytest.mark.parametrize(
    "text, told",
    [
        ("nothing", "comparisons like"),
        ("size = 3", "knows aliases, create_time, name, state, version"),
        ("state = GONE", "RUNNING, FAILED"),
        ("version = many", "a number"),
        ("create_time > soon", "2026-11-01T00:00:00Z"),
        ("name = a name = b", "AND between"),
        ("name : a", "= != < <= > >="),
        ("aliases = prod", "by :"),
        ("name = a AND", "comparisons like"),
        ("n" * 2001, "2000 characters"),
        ("state < RUNNING", "no order"),
    ],
)
def test_wrong_filters(text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told) as caught:
        FILTERS.parse(text)
    assert (caught.value.reason, caught.value.field) == ("FILTER", "filter")


@pytest.mark.parametrize(
    "text, is_meant",
    [
        ("end_time < 2027-01-01", False),
        ("end_time >= 2020-01-01", False),
        ("end_time = 2026-01-01", False),
        ("end_time != 2026-01-01", True),
        ("end_time < 0001-01-01T00:00:00+23:59", False),
    ],
)
def test_a_time_that_has_not_come_is_neither_before_nor_after(text: str, is_meant: bool) -> None:
    """A run that goes on has not ended in 1970."""
    for filters, resource in (
        (RUN_FILTERS, runs_pb2.Run(name="runs/r")),
        (JOB_FILTERS, jobs_pb2.Job(name="jobs/j")),
    ):
        assert filters.parse(text)(resource) == is_meant
        resource.status.end_time.FromJsonString("2026-06-01T00:00:00Z")
        assert filters.parse("end_time < 2027-01-01")(resource)


def options(**fields: object) -> generation_pb2.GenerationOptions:
    return generation_pb2.GenerationOptions(**fields)


def test_a_mask_names_what_changes() -> None:
    present = options(n=1, user="b", stop=["x"], sampling={"seed": 1, "top_k": 2})
    given_ = options(n=3, sampling={"seed": 5})
    may = ("n", "stop", "sampling.seed", "sampling.top_k")

    def by(*paths: str) -> generation_pb2.GenerationOptions:
        return updated(present, given_, FieldMask(paths=paths), may)

    assert by("n") == options(n=3, user="b", stop=["x"], sampling={"seed": 1, "top_k": 2})
    assert by("stop") == options(n=1, user="b", sampling={"seed": 1, "top_k": 2})
    assert by() == options(n=3, user="b", stop=["x"], sampling={"seed": 5, "top_k": 2})
    assert by("*") == options(n=3, user="b", sampling={"seed": 5})
    # What may not be set stays as it is: of a message that is named, too.
    top = options(n=1, user="b", stop=["x"], sampling={"seed": 5})
    assert by("sampling") == by("sampling", "sampling.seed") == top
    for path, told in (("size", "no field"), ("user", "platform"), ("sampling.seed.x", "no field")):
        with pytest.raises(InvalidArgument, match=told) as caught:
            by(path)
        assert "sampling.seed" in caught.value.message


def test_an_old_etag_is_told_the_present_one() -> None:
    present = etag_of(options(user="a"), "more")
    assert present != etag_of(options(user="b"), "more") != etag_of(options(user="a"), "mor", "e")
    check_etag("", present, "deployments/chat")
    check_etag(present, present, "deployments/chat")
    with pytest.raises(Aborted, match="deployments/chat has changed") as caught:
        check_etag("old", present, "deployments/chat")
    assert caught.value.metadata == {"etag": present}


def test_enums_as_words() -> None:
    reasons = sampling_pb2.FinishReason
    assert words(reasons) == ("stop", "length", "cancelled", "deadline")
    assert [word(reasons, number(reasons, one)) for one in words(reasons)] == list(words(reasons))
    assert (word(reasons, 0), number(reasons, "")) == ("", 0)
    with pytest.raises(InvalidArgument, match="stop, length"):
        number(reasons, "soon", "finish_reason")
    with pytest.raises(InvalidArgument, match="no value 99"):
        word(reasons, 99)


def test_a_value_that_an_enum_lacks_is_found_wherever_it_is() -> None:
    answer = generation_pb2.ChatChoice(finish_reason=99)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="FINISH_REASON_STOP") as caught:
        check_enums(answer)
    assert caught.value.field == "finish_reason"
    check_enums(generation_pb2.ChatChoice(finish_reason="FINISH_REASON_STOP"))


def test_only_the_owner_and_operators_change_a_resource() -> None:
    mine, other = (Principal(tenant, "k", frozenset({"runs"})) for tenant in ("acme", "umbrella"))
    admin = Principal("umbrella", "k", frozenset({"admin"}))
    owner = owner_of(mine)
    for may in (mine, admin, SYSTEM):
        check_owner(owner, may, "runs/a")
    with pytest.raises(PermissionDenied, match="another tenant"):
        check_owner(owner, other, "runs/a")
    check_owner(owner_of(SYSTEM), other, "runs/a")


def test_times() -> None:
    assert timestamp(0) is None
    stamp = timestamp(1_764_500_000_123)
    assert stamp is not None and unix_ms(stamp) == 1_764_500_000_123
    assert seconds(duration(1.25)) == 1.25
