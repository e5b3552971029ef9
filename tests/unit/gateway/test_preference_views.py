"""What REST's clients are told of preferences, by the names that they know."""

from __future__ import annotations

import pytest

from plinth.coordinator.preferences.checks import VALIDATORS
from plinth.gateway.preferences import bodies, queries
from plinth.gateway.preferences.views import in_rest_words, judgement_view, lease_view, task_view
from plinth.gateway.rest.bodies import validated
from plinth.shared.errors import Aborted, InvalidArgument, PlinthError
from plinth.v1 import chat_pb2
from plinth.v1 import preferences_pb2 as pb

TASK = {"prompt": "p", "responses": ["a", "b"]}


def refused(method: str, body: object) -> PlinthError:
    with pytest.raises(InvalidArgument) as caught:
        VALIDATORS[method](body)
    return in_rest_words(caught.value)


@pytest.mark.parametrize(
    ("method", "kind", "fields", "field"),
    [
        (
            "BatchCreatePreferenceTasks",
            bodies.CreateBody,
            {"tasks": [TASK, {**TASK, "responses": ["a", "a"]}]},
            "tasks.1.responses.1.text",
        ),
        (
            "BatchCreatePreferenceTasks",
            bodies.CreateBody,
            {"tasks": [{**TASK, "wanted": 6}]},
            "tasks.0.wanted",
        ),
        (
            "BatchCreatePreferenceTasks",
            bodies.CreateBody,
            {"tasks": [{**TASK, "task_id": "a:b"}]},
            "tasks.0.task_id",
        ),
        ("LeasePreferenceTask", bodies.LeaseBody, {"lease_seconds": 9}, "lease_seconds"),
        (
            "CreateJudgement",
            bodies.JudgementBody,
            {"task_id": "t", "source": "rule", "annotator": ""},
            "annotator",
        ),
        (
            "CreateJudgement",
            bodies.JudgementBody,
            {"task_id": "t", "fence": 1, "reason": "x" * 4001},
            "reason",
        ),
        ("PublishPairs", bodies.DatasetBody, {"name": "A b"}, "name"),
    ],
)
def test_what_is_wrong_has_the_name_that_it_has_in_the_body(
    method: str, kind: type, fields: dict[str, object], field: str
) -> None:
    error = refused(method, validated(kind, fields).to_proto())
    assert error.field == field
    assert error.message.startswith(field)


def test_an_error_of_no_field_stays_as_it_is() -> None:
    error = Aborted("somebody else holds it", reason="TASK_HELD", retry_after_s=1.0)
    assert in_rest_words(error) is error


@pytest.mark.parametrize("collection", ["a/b", "a b", "-", "x" * 65])
def test_a_collection_that_can_be_none_is_refused_by_its_name(collection: str) -> None:
    for make in (
        lambda: bodies.LeaseBody(collection=collection).to_proto(),
        lambda: queries.ExportQuery(collection=collection).to_proto(),
    ):
        with pytest.raises(InvalidArgument) as caught:
            make()
        assert caught.value.field == "collection"


def test_a_task_shows_given_and_sampled_responses_together() -> None:
    task = pb.PreferenceTask(
        name="collections/c/tasks/t",
        spec=pb.PreferenceTaskSpec(
            prompt=[chat_pb2.ChatMessage(role="user", content="p")],
            responses=[pb.PreferenceResponse(response_id="a", text="given")],
            gold=[pb.ResponseTier(response_ids=["a", "b"])],
            origin=pb.PREFERENCE_TASK_ORIGIN_LIVE,
            wanted_judgement_count=2,
            answered_request_id="r",
        ),
        status=pb.PreferenceTaskStatus(
            state=pb.PREFERENCE_TASK_STATE_LEASED,
            sampled_responses=[pb.PreferenceResponse(response_id="b", text="sampled")],
            human_judgement_count=1,
        ),
    )
    task.create_time.FromMilliseconds(1234)
    told = task_view(task)
    assert [one["text"] for one in told.pop("responses")] == ["given", "sampled"]
    assert told == {
        "task_id": "t",
        "collection": "c",
        "prompt": [{"role": "user", "content": "p"}],
        "samples": [],
        "wanted": 2,
        "gold": [["a", "b"]],
        "origin": "live",
        "request_id": "r",
        "created_unix_ms": 1234,
        "state": "leased",
        "judged": 1,
        "error": "",
    }


def test_leases_and_judgements_are_told_with_ids_and_milliseconds() -> None:
    lease = pb.PreferenceLease(task="collections/c/tasks/t", annotator="ann", fence=7)
    lease.expire_time.FromMilliseconds(5)
    told = lease_view(lease)
    assert (told["task_id"], told["fence"], told["expires_unix_ms"]) == ("t", 7, 5)
    judgement = pb.Judgement(
        name="collections/c/tasks/t/judgements/3",
        spec=pb.JudgementSpec(source=pb.JUDGEMENT_SOURCE_RULE, all_bad=True, annotator="r"),
        revision=3,
    )
    judgement.owner.key_id = "k"
    view = judgement_view(judgement)
    assert view["revision"] == 3
    assert view["judgement"]["task_id"] == "t"
    assert (view["judgement"]["source"], view["judgement"]["key_id"]) == ("rule", "k")
