"""Between protobuf and the engine: requests in, tokens out. No state, no I/O."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection

from plinth.engine.request import Binding, Finish, Request, SampledToken, Sampling, TokensEvent
from plinth.inference.outbox import ReaderBehind
from plinth.internal.v1 import inference_pb2
from plinth.shared.api import enums
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import MAX_PART_ID_CHARS
from plinth.v1 import sampling_pb2

PRIORITIES = 100  # to either side of 0
SCORE_PRIORITY = -1  # interactive answers go first
_FINISH = {
    Finish.STOP: sampling_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
    Finish.CANCELLED: sampling_pb2.FINISH_REASON_CANCELLED,
    Finish.DEADLINE: sampling_pb2.FINISH_REASON_DEADLINE,
}


def engine_request(
    message: inference_pb2.GenerateRequest,
    *,
    tenant: str,
    remaining_s: float | None,
    eos_ids: Collection[int],
    positions: int,
) -> Request:
    """A generation as the engine takes it. InvalidArgument where the id is too long.

    eos_ids: the model's; positions: its context in tokens, for a request without `max_tokens`.
    """
    if len(message.request_id) > MAX_PART_ID_CHARS:
        raise InvalidArgument(
            f"request_id is longer than {MAX_PART_ID_CHARS} characters", field="request_id"
        )
    ids = tuple(id_ for span in message.input for id_ in span.tokens.ids)
    return Request(
        # Two attempts of one answer may meet on one shard: the engine's id is its own.
        id=f"{message.request_id}-{secrets.token_hex(4)}",
        ids=ids,
        binding=_binding(message.binding),
        sampling=_sampling(message, eos_ids, max(1, positions - len(ids))),
        priority=max(-PRIORITIES, min(PRIORITIES, message.priority)),
        tenant=tenant,
        deadline=_deadline(remaining_s),
    )


def score_request(
    item: inference_pb2.ScoreItem,
    binding: inference_pb2.Binding,
    tenant: str,
    remaining_s: float | None,
) -> Request:
    """Log-probabilities of ids that are there already."""
    return Request(
        id=f"score-{secrets.token_hex(8)}",
        ids=tuple(item.ids),
        binding=_binding(binding),
        priority=SCORE_PRIORITY,
        tenant=tenant,
        deadline=_deadline(remaining_s),
        score_from=item.from_position or 1,
    )


def response(
    event: TokensEvent, weights_digest: str, seed: int | None
) -> inference_pb2.GenerateResponse:
    """One message of the stream. `seed` goes into the first, with what is known of the usage then;
    finish and all of the usage into the last."""
    message = inference_pb2.GenerateResponse(
        tokens=[_token(token) for token in event.tokens], weights_digest=weights_digest
    )
    if seed is not None:
        message.seed = seed
        message.usage.prompt_tokens = event.usage.prompt
        message.usage.cached_tokens = event.usage.cached
    if event.finish is not None:
        usage = event.usage
        message.finish_reason = _FINISH[event.finish]
        message.reader_behind = isinstance(event, ReaderBehind)
        message.usage.CopyFrom(
            sampling_pb2.Usage(
                prompt_tokens=usage.prompt,
                completion_tokens=usage.completion,
                cached_tokens=usage.cached,
                draft_proposed=usage.draft_proposed,
                draft_accepted=usage.draft_accepted,
            )
        )
    return message


def _sampling(
    request: inference_pb2.GenerateRequest, eos_ids: Collection[int], room: int
) -> Sampling:
    message = request.sampling
    given = message.HasField
    stop = set(message.stop_token_ids)
    if not message.ignore_eos:
        stop |= set(eos_ids)
    return Sampling(
        temperature=message.temperature if given("temperature") else 1.0,
        top_p=message.top_p if given("top_p") else 1.0,
        top_k=message.top_k if given("top_k") else 0,
        seed=message.seed if given("seed") else secrets.randbits(63),
        max_tokens=message.max_tokens if given("max_tokens") else room,
        stop_ids=frozenset(stop),
        top_logprobs=message.top_logprobs,
        speculation=enums.word(sampling_pb2.Speculation, message.speculation),
        first_output_position=request.first_output_position,
        sample_index=message.sample_index,
    )


def _deadline(remaining_s: float | None) -> float | None:
    return None if remaining_s is None else time.monotonic() + remaining_s


def _binding(binding: inference_pb2.Binding) -> Binding:
    return Binding(binding.weights_digest, binding.adapter, binding.quantization)


def _token(token: SampledToken) -> sampling_pb2.Token:
    return sampling_pb2.Token(
        id=token.id,
        logprob=token.logprob,
        raw_logprob=token.raw_logprob,
        top=[sampling_pb2.TopLogprob(id=i, logprob=p) for i, p in token.top],
    )
