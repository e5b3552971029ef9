"""Requests of the Open Inference Protocol as those of OpenAI's API: the same parameters by the same
names, the same checks, the same defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from plinth.gateway import limits
from plinth.gateway.generation.generator import TextRequest
from plinth.gateway.openai.field_rules import UnknownFields
from plinth.gateway.openai.requests import ChatBody, CompletionBody
from plinth.gateway.rest.bodies import parse_part
from plinth.gateway.services import tensors
from plinth.oip.v2 import open_inference_pb2 as pb
from plinth.shared.errors import InvalidArgument

PROMPTS, CHATS, PARAMETERS, STREAM = "text_input", "messages", "sampling_parameters", "stream"
INPUTS = {PROMPTS: "BYTES", CHATS: "BYTES", PARAMETERS: "BYTES", STREAM: "BOOL"}
TEXT, FINISH, TOKENS = "text_output", "finish_reason", "num_output_tokens"
OUTPUTS = {TEXT: "BYTES", FINISH: "BYTES", TOKENS: "UINT32"}
MAX_ID_CHARS = 256  # of a request, by its client
# Parameters of Triton's that are none of sampling.
EMPTY_FINAL = "triton_enable_empty_final_response"
_TRITONS = frozenset(
    {
        EMPTY_FINAL,
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "binary_data_output",
    }
)
_ELSEWHERE = ("model", "prompt", "messages", "stream", "stream_options", "best_of", "select")


@dataclass(frozen=True)
class Asked:
    """asks: one for each answer. outputs: those that are wanted. raw: in which form. pieces: the
    answer is wanted as it comes. empty_final: behind the last piece comes a response with none."""

    asks: list[TextRequest]
    outputs: tuple[str, ...]
    raw: bool
    pieces: bool
    empty_final: bool


def read(request: pb.ModelInferRequest, unknown: UnknownFields, *, streams: bool) -> Asked:
    """What is asked for. InvalidArgument names the input, the parameter or the output that is
    wrong. streams: whether pieces can be sent."""
    _check_id(request.id)
    _check_places(request)
    found = tensors.read(request, INPUTS)
    outputs = _outputs(request)
    pieces = _pieces(found, streams=streams)
    body = {**_parameters(request, found), "model": request.model_name, "stream": pieces}
    asks = _asks(found, body, unknown)
    if pieces and len(asks) != 1:
        raise _wrong(STREAM, f"pieces of one answer alone can be told apart, not of {len(asks)}")
    return Asked(
        asks,
        outputs,
        bool(request.raw_input_contents),
        pieces,
        request.parameters[EMPTY_FINAL].bool_param if EMPTY_FINAL in request.parameters else False,
    )


def _check_id(id: str) -> None:
    """It comes back with every piece."""
    if len(id) > MAX_ID_CHARS:
        raise _wrong("id", f"has at most {MAX_ID_CHARS} characters, not {len(id)}")


def _check_places(request: pb.ModelInferRequest) -> None:
    """Of Triton's: elements elsewhere than in the request and its response, and others than those
    that there are."""
    places = [(f"inputs.{at}", one.parameters) for at, one in enumerate(request.inputs)]
    places += [(f"outputs.{at}", one.parameters) for at, one in enumerate(request.outputs)]
    for place, parameters in places:
        for name in parameters:
            where = f"{place}.parameters.{name[:64]}"
            if name.startswith("shared_memory_"):
                raise _wrong(
                    where,
                    "there is no shared memory here; elements come in the request, and go back "
                    "in its response",
                )
            if name == "classification":
                raise _wrong(where, "texts have no classes")


def _outputs(request: pb.ModelInferRequest) -> tuple[str, ...]:
    """Those that are wanted, each once: a text is not to come back a thousand times."""
    wanted: dict[str, None] = {}
    for at, one in enumerate(request.outputs):
        where = f"outputs.{at}.name"
        if one.name not in OUTPUTS:
            raise _wrong(where, f"{one.name[:64]!r} is no output; {', '.join(OUTPUTS)} are")
        if one.name in wanted:
            raise _wrong(where, f"{one.name!r} comes twice")
        wanted[one.name] = None
    return tuple(wanted or OUTPUTS)


def _asks(
    found: dict[str, list[Any]], body: dict[str, Any], unknown: UnknownFields
) -> list[TextRequest]:
    if (PROMPTS in found) == (CHATS in found):
        raise _wrong("inputs", f"either {PROMPTS} or {CHATS} is needed")
    name = PROMPTS if PROMPTS in found else CHATS
    made: list[ChatBody] | list[CompletionBody]
    try:
        limits.check_answers(len(found[name]), 1)
        if name == PROMPTS:
            texts = [_text(one, f"{PROMPTS}.{at}") for at, one in enumerate(found[PROMPTS])]
            made = [CompletionBody.of({**body, "prompt": texts}, unknown)]
        else:
            made = [
                ChatBody.of({**body, "messages": parse_part(one, list, f"{CHATS}.{at}")}, unknown)
                for at, one in enumerate(found[CHATS])
            ]
    except InvalidArgument as error:
        if error.field.partition(".")[0] == "prompt":
            error.field = error.field.replace("prompt", name, 1)
            error.message = error.message.replace("prompt", name, 1)
        raise
    if any(one.samples != 1 for one in made):
        raise _wrong("n", "here each input has one answer; GenerationService gives several")
    deaths: set[str] = set()
    asks = [ask for one in made for ask in one.asks(name)]
    return [replace(ask, answers=len(asks), deaths=deaths) for ask in asks]


def _pieces(found: dict[str, list[Any]], *, streams: bool) -> bool:
    if len(found.get(STREAM, [False])) != 1:
        raise _wrong(STREAM, "one element is needed")
    pieces = bool(found.get(STREAM, [False])[0])
    if pieces and not streams:
        raise _wrong(STREAM, "ModelInfer answers whole; ask ModelStreamInfer for pieces")
    return pieces


def _parameters(request: pb.ModelInferRequest, found: dict[str, list[Any]]) -> dict[str, Any]:
    """By name, of both places."""
    given: dict[str, Any] = {}
    for name, one in request.parameters.items():
        if name not in _TRITONS:
            choice = one.WhichOneof("parameter_choice")
            given[name] = getattr(one, choice) if choice is not None else None
    if PARAMETERS in found:
        if len(found[PARAMETERS]) != 1:
            raise _wrong(PARAMETERS, "one element is needed, for all texts")
        told = parse_part(found[PARAMETERS][0], dict, PARAMETERS)
        if twice := sorted(told.keys() & given):
            raise _wrong(f"parameters.{twice[0]}", f"is in {PARAMETERS} too")
        given |= told
    for name in _ELSEWHERE:
        if name in given:
            raise _wrong(name, "is no parameter here; it has a place of its own, or none")
    return given


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _wrong(where, f"is not valid UTF-8: {error.reason} at byte {error.start}") from None


def _wrong(where: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{where}: {what}", reason="INVALID_VALUE", field=where)
