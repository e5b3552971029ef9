"""Requests of GenerationService: checked as REST's are, and as what the gateway's core takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from plinth.gateway import limits
from plinth.gateway.generation.generator import TextRequest
from plinth.gateway.generation.selection import Select, Selection, selection_of
from plinth.gateway.openai.chat_messages import check_messages, normalised
from plinth.gateway.rest.bodies import validated
from plinth.shared.api import enums, structs
from plinth.shared.errors import InvalidArgument
from plinth.v1 import generation_pb2 as pb

MODELS = "models/"
MAX_MODEL_CHARS = 256

ChatRequest = pb.ChatRequest | pb.StreamChatRequest
CompleteRequest = pb.CompleteRequest | pb.StreamCompleteRequest


def check_chat(request: ChatRequest) -> None:
    """InvalidArgument unless REST would take it too."""
    check_messages(request.messages)
    _check_common(request)


def check_completion(request: CompleteRequest) -> None:
    """InvalidArgument unless REST would take it too."""
    if request.WhichOneof("input") is None:
        raise InvalidArgument(
            "prompt: is missing; give prompt, or prompt_tokens",
            reason="MISSING_PARAMETER",
            field="prompt",
        )
    limits.check_text(request.prompt, "prompt")
    _check_common(request)


def chat_ask(request: ChatRequest) -> TextRequest:
    """Of a checked request."""
    return _ask(request, normalised(request.messages), "messages")


def completion_ask(request: CompleteRequest) -> TextRequest:
    """Of a checked request."""
    special = not request.HasField("parse_special_tokens") or request.parse_special_tokens
    if request.WhichOneof("input") == "prompt":
        return _ask(request, request.prompt, "prompt", special_tokens=special)
    # A copy, which does not keep the request.
    ids = pb.CompleteRequest(prompt_tokens=request.prompt_tokens).prompt_tokens.ids
    return _ask(request, ids, "prompt_tokens")


def model_id(name: str) -> str:
    """Of a served model's id, or its resource name."""
    return name.removeprefix(MODELS)


def selection(request: pb.ChatRequest | pb.CompleteRequest) -> Selection | None:
    """Which of the candidates are returned; None: all. InvalidArgument for what can't be."""
    asked: dict[str, Any] = {"best_of": request.best_of or None}
    if request.HasField("select"):
        asked["select"] = _select(request.select)
    choice = validated(_Choice, asked)
    n = request.options.n or 1
    return selection_of(choice.best_of, n, choice.select, stream=False)


class _Choice(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    best_of: int | None = Field(default=None, ge=1, le=limits.MAX_SAMPLES)
    select: Select | None = None


def _select(given: pb.Select) -> dict[str, Any]:
    """As REST has it."""
    rules = [
        {
            "rule": structs.plain_values(one.rule),
            "weight": one.weight if one.HasField("weight") else 1.0,
        }
        for one in given.rules
    ]
    return {
        "by": enums.word(pb.SelectBy, given.by) or "likelihood",
        "reward": given.reward or None,
        "rules": rules or None,
        "pattern": given.pattern or None,
        "weights": enums.word(pb.VoteWeights, given.weights) or None,
    }


def _ask(
    request: ChatRequest | CompleteRequest,
    prompt: str | Sequence[Any],
    prompt_field: str,
    *,
    special_tokens: bool = True,
) -> TextRequest:
    options = request.options
    whole = isinstance(request, pb.ChatRequest | pb.CompleteRequest)
    best_of = request.best_of if isinstance(request, pb.ChatRequest | pb.CompleteRequest) else 0
    return TextRequest(
        model_id(request.model),
        prompt,
        limits.normalised(options.sampling),
        limits.meant_stops(options.stop),
        best_of or options.n or 1,
        prompt_field,
        "best_of" if best_of else "options.n",
        whole=whole,
        sampling_prefix="options.sampling.",
        user=options.user,
        special_tokens=special_tokens,
    )


def _check_common(request: ChatRequest | CompleteRequest) -> None:
    check_model(request.model)
    options = request.options
    limits.check_text(options.user, "options.user")
    limits.check_sampling(options.sampling, "options.sampling.")
    limits.check_stops(options.stop, "options.stop")
    limits.check_samples(options.n or 1, "options.n")
    if isinstance(request, pb.ChatRequest | pb.CompleteRequest):
        selection(request)


def check_model(name: str) -> None:
    """InvalidArgument for what can be no served model's name."""
    if not 1 <= len(model_id(name)) <= MAX_MODEL_CHARS:
        raise InvalidArgument(
            f"model: its name has 1 to {MAX_MODEL_CHARS} characters, not {len(model_id(name))}",
            field="model",
        )
    limits.check_text(name, "model")
