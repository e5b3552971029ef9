"""What a client may ask of a task, and the task that is made of it.

Every size has a limit. Response ids tell nothing of who wrote the response: those that the client
does not give are hashes.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence

from plinth.coordinator.preferences.ranking import check_ranking
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.api.enums import word
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import MAX_REQUEST_ID_CHARS
from plinth.shared.redis_keys import check_part
from plinth.v1 import chat_pb2, owner_pb2
from plinth.v1 import preferences_pb2 as pb

ROLES = ("system", "user", "assistant")
MIN_RESPONSES, MAX_RESPONSES = 2, 8
MAX_TEXT_BYTES = 64 << 10  # of a prompt in all, and of each response
MAX_MESSAGES = 256
MAX_NAME_CHARS = 64
MAX_MODEL_CHARS = 256
MAX_WANTED, MAX_WANTED_GOLD = 5, 1000
MAX_TOKENS = 16_384  # of one sampled response
DEFAULT_TOKENS = 512
MAX_STOPS = 256  # those of a request and the model's own


def annotator_of(name: str, default: str = "", field: str = "annotator") -> str:
    """A judge's pseudonym."""
    if not name and not default:
        raise InvalidArgument(f"{field}: say whose judgement it is", field=field)
    return _name(name or default, field)


def _name(value: str, field: str) -> str:
    if len(value) > MAX_NAME_CHARS:
        raise InvalidArgument(
            f"{field}: {len(value)} characters, at most {MAX_NAME_CHARS}", field=field
        )
    return check_part(value, field)


def make_task(
    spec: pb.PreferenceTaskSpec,
    collection: str,
    where: str,
    *,
    task_id: str = "",
    owner: owner_pb2.Owner | None = None,
) -> rec.PreferenceTaskRecord:
    """The task that `spec` asks for, with an id of its own where none is given. InvalidArgument
    names what is wrong, below `where`."""
    task_id = task_id or uuid.uuid4().hex
    if len(spec.answered_request_id) > MAX_REQUEST_ID_CHARS:
        raise InvalidArgument(
            f"{where}.answered_request_id: {len(spec.answered_request_id)} characters, at most "
            f"{MAX_REQUEST_ID_CHARS}",
            field=f"{where}.answered_request_id",
        )
    check_prompt(spec.prompt, f"{where}.prompt")
    sampled = _check_samples(spec.samples, f"{where}.samples")
    count = len(spec.responses) + sampled
    if not MIN_RESPONSES <= count <= MAX_RESPONSES:
        raise InvalidArgument(
            f"{where}.responses: a task has {MIN_RESPONSES} to {MAX_RESPONSES} responses to its "
            f"prompt, given and sampled together; this one has {count}",
            reason="RESPONSE_COUNT",
            field=f"{where}.responses",
        )
    task = rec.PreferenceTaskRecord(
        task_id=task_id,
        collection=collection,
        prompt=spec.prompt,
        samples=spec.samples,
        wanted=spec.wanted_judgement_count if spec.HasField("wanted_judgement_count") else 1,
        gold=spec.gold,
        origin=word(pb.PreferenceTaskOrigin, spec.origin) or "client",
        request_id=spec.answered_request_id,
        created_unix_ms=time.time_ns() // 1_000_000,
        tenant=owner.tenant if owner else "",
        key_id=owner.key_id if owner else "",
    )
    for index, response in enumerate(spec.responses):
        add_response(task, response, f"{where}.responses.{index}")
    _check_wanted(task, f"{where}.wanted_judgement_count")
    if task.gold:
        _check_gold(task, f"{where}.gold")
    return task


def check_prompt(prompt: Sequence[chat_pb2.ChatMessage], where: str) -> None:
    """A conversation within bounds that ends with the user."""
    if not prompt or prompt[-1].role != "user" or not prompt[-1].content.strip():
        raise InvalidArgument(
            f"{where}: a prompt is a conversation that ends with what the user says",
            reason="PROMPT_INVALID",
            field=where,
        )
    if len(prompt) > MAX_MESSAGES:
        raise InvalidArgument(
            f"{where}: {len(prompt)} messages, at most {MAX_MESSAGES}", field=where
        )
    for index, message in enumerate(prompt):
        if message.role not in ROLES:
            raise InvalidArgument(
                f"{where}.{index}.role: {message.role[:64]!r} is none of {', '.join(ROLES)}",
                field=f"{where}.{index}.role",
            )
    size = sum(len(message.content.encode()) for message in prompt)
    if size > MAX_TEXT_BYTES:
        raise InvalidArgument(
            f"{where}: {size:,} bytes of text, at most {MAX_TEXT_BYTES:,}", field=where
        )


def add_response(
    task: rec.PreferenceTaskRecord, response: pb.PreferenceResponse, where: str
) -> None:
    """Appends it, with an id. InvalidArgument: no text, too much, or one that is there already."""
    size = len(response.text.encode())
    if not response.text.strip() or size > MAX_TEXT_BYTES:
        raise InvalidArgument(
            f"{where}.text: {size:,} bytes; a response has text, and at most "
            f"{MAX_TEXT_BYTES:,} bytes of it",
            reason="RESPONSE_TEXT",
            field=f"{where}.text",
        )
    for name in ("model", "weights_digest"):
        if len(getattr(response, name)) > MAX_MODEL_CHARS:
            raise InvalidArgument(
                f"{where}.{name}: at most {MAX_MODEL_CHARS} characters", field=f"{where}.{name}"
            )
    if len(response.sampling.stop_token_ids) > MAX_STOPS:
        raise InvalidArgument(
            f"{where}.sampling.stop_token_ids: {len(response.sampling.stop_token_ids):,}, at most "
            f"{MAX_STOPS}",
            field=f"{where}.sampling.stop_token_ids",
        )
    if any(response.text == other.text for other in task.responses):
        raise InvalidArgument(
            f"{where}.text: the same text as another response; there is nothing to choose",
            reason="RESPONSE_TWICE",
            field=f"{where}.text",
        )
    response_id = response.response_id or response_name(task.task_id, response.text)
    _name(response_id, f"{where}.response_id")
    if any(response_id == other.response_id for other in task.responses):
        raise InvalidArgument(
            f"{where}.response_id: {response_id!r} is given twice",
            reason="RESPONSE_TWICE",
            field=f"{where}.response_id",
        )
    added = task.responses.add()
    added.CopyFrom(response)
    added.response_id = response_id


def response_name(task_id: str, text: str) -> str:
    """An id that a look at it tells nothing from."""
    return hashlib.sha256(f"{task_id}\0{text}".encode()).hexdigest()[:12]


def _check_samples(samples: Sequence[pb.SampleSpec], where: str) -> int:
    total = 0
    for index, sample in enumerate(samples):
        field = f"{where}.{index}"
        if not 1 <= len(sample.model) <= MAX_MODEL_CHARS:
            raise InvalidArgument(f"{field}.model: name a served model", field=f"{field}.model")
        if sample.count > MAX_RESPONSES:
            raise InvalidArgument(
                f"{field}.count: {sample.count}, at most {MAX_RESPONSES}", field=f"{field}.count"
            )
        sampling = sample.sampling
        bounds = (
            ("temperature", not sampling.HasField("temperature") or 0 <= sampling.temperature <= 2),
            ("top_p", not sampling.HasField("top_p") or 0 < sampling.top_p <= 1),
            (
                "max_tokens",
                not sampling.HasField("max_tokens") or 1 <= sampling.max_tokens <= MAX_TOKENS,
            ),
            ("stop_token_ids", len(sampling.stop_token_ids) <= 64),
        )
        for name, good in bounds:
            if not good:
                raise InvalidArgument(
                    f"{field}.sampling.{name}: out of range", field=f"{field}.sampling.{name}"
                )
        total += sample.count or 1
    return total


def _check_wanted(task: rec.PreferenceTaskRecord, where: str) -> None:
    most = MAX_WANTED_GOLD if task.gold else MAX_WANTED
    if task.wanted > most:
        raise InvalidArgument(
            f"{where}: {task.wanted} judgements by different people, at most {most}", field=where
        )


def _check_gold(task: rec.PreferenceTaskRecord, where: str) -> None:
    if task.samples:
        raise InvalidArgument(
            f"{where}: the right order of responses that are still to be sampled can't be known",
            field=where,
        )
    check_ranking(task.gold, [response.response_id for response in task.responses], where)
    if len(task.gold) < 2:
        raise InvalidArgument(
            f"{where}: a gold question needs a better and a worse response", field=where
        )


def spec_digest(task: rec.PreferenceTaskRecord) -> str:
    """What a task asks for, whenever and by whom it was made."""
    plain = rec.PreferenceTaskRecord()
    plain.CopyFrom(task)
    for name in ("created_unix_ms", "tenant", "key_id"):
        plain.ClearField(name)
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()
