"""Records of preferences as the messages that clients get."""

from __future__ import annotations

from plinth.coordinator.preferences.collection import Counts
from plinth.coordinator.preferences.membership import Maker
from plinth.coordinator.preferences.records import Grant
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.api.enums import number, word
from plinth.shared.api.times import timestamp
from plinth.shared.preference_names import COLLECTIONS, JUDGEMENTS, TASKS
from plinth.v1 import owner_pb2
from plinth.v1 import preferences_pb2 as pb


def collection_message(collection: str, maker: Maker, counts: Counts) -> pb.PreferenceCollection:
    return pb.PreferenceCollection(
        name=COLLECTIONS.name(collection),
        status=pb.PreferenceCollectionStatus(
            task_count=counts.total,
            open_task_count=counts.open,
            leased_task_count=counts.leased,
            revision=counts.judgements,
        ),
        owner=maker.owner,
        create_time=timestamp(maker.created_unix_ms),
    )


def task_message(record: rec.PreferenceTaskRecord, *, texts: bool = True) -> pb.PreferenceTask:
    """texts: with the prompt and the texts of responses."""
    given = given_responses(record)
    task = pb.PreferenceTask(
        name=TASKS.name(record.collection, record.task_id),
        spec=pb.PreferenceTaskSpec(
            prompt=record.prompt if texts else (),
            responses=record.responses[:given],
            samples=record.samples,
            wanted_judgement_count=record.wanted,
            gold=record.gold,
            origin=pb.PreferenceTaskOrigin.ValueType(
                number(pb.PreferenceTaskOrigin, record.origin)
            ),
            answered_request_id=record.request_id,
        ),
        status=pb.PreferenceTaskStatus(
            state=record.state,
            sampled_responses=record.responses[given:],
            human_judgement_count=record.judged,
            error=record.error,
        ),
        owner=owner_pb2.Owner(tenant=record.tenant, key_id=record.key_id),
        create_time=timestamp(record.created_unix_ms),
    )
    if not texts:
        for response in (*task.spec.responses, *task.status.sampled_responses):
            response.ClearField("text")
    return task


def given_responses(record: rec.PreferenceTaskRecord) -> int:
    """How many of a record's responses are the client's: those that are sampled come behind them,
    all at once."""
    sampled = sum(sample.count or 1 for sample in record.samples)
    unmade = record.state in (
        pb.PREFERENCE_TASK_STATE_SAMPLING,
        pb.PREFERENCE_TASK_STATE_FAILED,
    )
    return len(record.responses) - (0 if unmade else sampled)


def judgement_message(collection: str, record: rec.JudgementRecord, revision: int) -> pb.Judgement:
    """revision: its number in the collection."""
    return pb.Judgement(
        name=JUDGEMENTS.name(collection, record.task_id, str(revision)),
        spec=pb.JudgementSpec(
            ranking=record.ranking,
            all_bad=record.all_bad,
            reason=record.reason,
            annotator=record.annotator,
            source=record.source,
            shown=record.shown,
        ),
        revision=revision,
        owner=owner_pb2.Owner(tenant=record.tenant, key_id=record.key_id),
        create_time=timestamp(record.judged_unix_ms),
    )


def lease_message(grant: Grant) -> pb.PreferenceLease:
    """Ids and texts only: who wrote a response is not the annotator's to know."""
    task = grant.task
    texts = {response.response_id: response.text for response in task.responses}
    return pb.PreferenceLease(
        task=TASKS.name(task.collection, task.task_id),
        prompt=task.prompt,
        responses=[pb.PreferenceResponse(response_id=one, text=texts[one]) for one in grant.shown],
        annotator=grant.annotator,
        fence=grant.fence,
        expire_time=timestamp(grant.expires_unix_ms),
    )


def state_word(record: rec.PreferenceTaskRecord) -> str:
    """ "OPEN", as filters say it."""
    return word(pb.PreferenceTaskState, record.state).upper()
